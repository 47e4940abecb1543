// Two views of a chain: its path over the loss of the task, and the matrix of its weights.

const LOW = [12, 52, 84]; // colours of the smallest and the largest loss
const HIGH = [236, 243, 246];
const LIGHT = { zero: [255, 255, 255], negative: [23, 92, 158], positive: [190, 84, 10] };
const DARK = { zero: [29, 35, 38], negative: [104, 176, 245], positive: [255, 160, 84] };
const LEVELS = 14;
const FIELD = 400; // pixels along each side of the loss image before scaling

const mix = (a, b, s) => a.map((v, i) => v + (b[i] - v) * s);
const extent = (values) => [Math.min(...values), Math.max(...values)];
const range = (low, high) => (high - low > 1e-12 ? high - low : 1);

// Match the canvas to the resolution of the screen.
function resize(canvas) {
  const scale = Math.min(window.devicePixelRatio || 1, 2);
  const [width, height] = [Math.max(1, Math.round(canvas.clientWidth * scale)), Math.max(1, Math.round(canvas.clientHeight * scale))];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  return [canvas.getContext("2d"), width, height, scale];
}

// The loss at every pixel, interpolated, on a logarithmic scale from 0 to 1.
function field(loss) {
  const logs = loss.map((row) => row.map((v) => Math.log(v + 1e-3)));
  const [low, high] = extent(logs.flat());
  const n = logs.length - 1;
  return (row, column) => {
    const [y, x] = [(row / (FIELD - 1)) * n, (column / (FIELD - 1)) * n];
    const [i, j] = [Math.min(n - 1, Math.floor(y)), Math.min(n - 1, Math.floor(x))];
    const [s, r] = [y - i, x - j];
    const top = logs[i][j] * (1 - r) + logs[i][j + 1] * r;
    const bottom = logs[i + 1][j] * (1 - r) + logs[i + 1][j + 1] * r;
    return (top * (1 - s) + bottom * s - low) / range(low, high);
  };
}

// Filled contours of the loss with thin lines between them. The first row of `loss` has the lowest y and is at the bottom.
function bands(loss) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = FIELD;
  const context = canvas.getContext("2d");
  const image = context.createImageData(FIELD, FIELD);
  const at = field(loss);
  const colours = Array.from({ length: LEVELS }, (_, i) => mix(LOW, HIGH, i / (LEVELS - 1)));
  const levels = new Uint8Array(FIELD * FIELD).map((_, i) => {
    return Math.min(LEVELS - 1, Math.floor(at(FIELD - 1 - Math.floor(i / FIELD), i % FIELD) * LEVELS));
  });
  levels.forEach((level, i) => {
    const edge = (i >= FIELD && levels[i - FIELD] !== level) || (i % FIELD && levels[i - 1] !== level);
    image.data.set([...mix(colours[level], HIGH, edge ? 0.35 : 0), 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

export class Landscape {
  constructor(canvas) {
    this.canvas = canvas;
  }

  show(data) {
    this.data = data;
    this.ground = bands(data.loss);
  }

  // Up to the state at time t.
  draw(t) {
    const [context, width, height, scale] = resize(this.canvas);
    const { x, y, path, times } = this.data;
    const [left, right] = [x[0], x[x.length - 1]];
    const [low, high] = [y[0], y[y.length - 1]];
    const toPixels = ([u, v]) => [((u - left) / range(left, right)) * width, (1 - (v - low) / range(low, high)) * height];
    context.imageSmoothingQuality = "high";
    context.drawImage(this.ground, 0, 0, width, height);
    const points = path.filter((_, i) => times[i] <= t).map(toPixels);
    context.lineJoin = context.lineCap = "round";
    for (const [colour, thickness] of [["#1c2226", 5], ["#ffb454", 2.5]]) {
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = thickness * scale;
      context.beginPath();
      points.forEach((p) => context.lineTo(...p));
      context.stroke();
      this.dot(context, points[0], 6 * scale, false);
      this.dot(context, points[points.length - 1], (thickness + 2) * scale, true);
    }
  }

  dot(context, [x, y], radius, filled) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    if (filled) context.fill();
    else context.stroke();
  }
}

// value -> a colour between those of -scale and scale.
export function signed(scale) {
  const { zero, negative, positive } = window.matchMedia("(prefers-color-scheme: dark)").matches ? DARK : LIGHT;
  return (value) => {
    const v = Math.max(-1, Math.min(1, value / (scale || 1)));
    return `rgb(${mix(zero, v < 0 ? negative : positive, Math.abs(v)).map(Math.round).join(",")})`;
  };
}

// The weights of every state as a heat map: rows are units, with one colour scale for all states.
export class Matrix {
  constructor(canvas) {
    this.canvas = canvas;
  }

  show(steps) {
    this.weights = new Map(steps.map((s) => [s.t, s.weights]));
    const sizes = steps[steps.length - 1].weights.flat().map(Math.abs).sort((a, b) => a - b);
    this.scale = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
  }

  draw(t) {
    const [context, width, height] = resize(this.canvas);
    const rows = this.weights.get(t);
    const colour = signed(this.scale);
    const [high, wide] = [height / rows.length, width / rows[0].length];
    rows.forEach((row, i) =>
      row.forEach((value, j) => {
        context.fillStyle = colour(value);
        const [x, y] = [Math.floor(j * wide), Math.floor(i * high)];
        context.fillRect(x, y, Math.floor((j + 1) * wide) - x, Math.floor((i + 1) * high) - y);
      }),
    );
  }
}

// Conversion of drawings to images like those of training: strokes are centred, scaled and drawn with the same pen width, dark on
// light. The server resizes the image and inverts it.

export const PEN = 1.3 / 28; // fraction of the side, as in tasks/images/glyphs.py: a radius of 1.3 half pixels at 28 x 28
const SIZE = 0.53; // fraction of the side: mean length of the longer side of a letter there
const MAX_SCALE = 3; // of a small drawing
const OVERSAMPLING = 4; // drawn pixels per pixel of the model
const MAX_SIDE = 512; // of an uploaded picture

// A drawing has strokes, lists of [x, y] in 0..1, and perhaps a picture, a canvas on which they are drawn.
export const empty = (drawing) => !drawing.picture && drawing.strokes.length === 0;

function fit(strokes) {
  const xs = strokes.flat().map((p) => p[0]);
  const ys = strokes.flat().map((p) => p[1]);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min(SIZE / Math.max(right - left, bottom - top, 1e-6), MAX_SCALE);
  return strokes.map((s) => s.map(([x, y]) => [0.5 + scale * (x - (left + right) / 2), 0.5 + scale * (y - (top + bottom) / 2)]));
}

export function trace(context, strokes, side, colour = "#000") {
  context.strokeStyle = colour;
  context.lineWidth = PEN * side;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
    for (const [x, y] of stroke) context.lineTo(x * side, y * side); // a single point becomes a dot
    context.stroke();
  }
}

function blankCanvas(width, height = width, colour = "#fff") {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
  return [canvas, context];
}

// The image that is sent, as a canvas; `side` is that of the model's images.
export function render(drawing, side) {
  if (drawing.picture && !drawing.strokes.length) return drawing.picture;
  const [canvas, context] = blankCanvas(OVERSAMPLING * side);
  if (drawing.picture) context.drawImage(drawing.picture, 0, 0, canvas.width, canvas.height);
  trace(context, drawing.picture ? drawing.strokes : fit(drawing.strokes), canvas.width);
  return canvas;
}

// The ink in 0..1 at side x side, as the server reads a drawing: grey, the mean of every box of pixels, dark ink inverted.
export function ink(drawing, side) {
  const canvas = render(drawing, side);
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const grey = new Float64Array(width * height).map((_, i) => 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]);
  const [columns, rows] = [boxes(side, width / side), boxes(side, height / side)];
  const small = new Float64Array(side * side).map((_, i) => mean(grey, width, columns[i % side], rows[Math.floor(i / side)]));
  const light = small.reduce((a, b) => a + b, 0) / small.length > 127;
  return small.map((v) => (light ? 255 - v : v) / 255);
}

// The pixels whose centres lie in each of `count` boxes of `size` pixels, at least one each, as Pillow's BOX chooses them.
function boxes(count, size) {
  const width = Math.max(size, 1);
  return Array.from({ length: count }, (_, i) => {
    const centre = (i + 0.5) * size;
    const first = Math.floor(centre - width / 2 + 0.5);
    const pixels = Array.from({ length: Math.floor(centre + width / 2 + 0.5) - first }, (_, j) => first + j);
    return pixels.filter((x) => (x - centre + 0.5) / width <= 0.5); // rounding may have let one more in
  });
}

function mean(grey, width, columns, rows) {
  let sum = 0;
  for (const y of rows) for (const x of columns) sum += grey[y * width + x];
  return sum / (rows.length * columns.length);
}

// What is sent of a drawing; of a photo a JPEG, which is smaller.
export function encoded(drawing, side, colour) {
  return render(drawing, side).toDataURL(colour ? "image/jpeg" : "image/png", 0.95).split(",")[1];
}

// An image file as a square picture, see `square`.
export async function loadPicture(file, colour) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser can read.`);
  }
  return square(bitmap, bitmap.width, bitmap.height, colour);
}

// An image as a square picture: cropped for colour models, otherwise padded with the colour of its corner.
export function square(image, wide, high, colour) {
  const edge = (colour ? Math.min : Math.max)(wide, high);
  const side = Math.min(edge, MAX_SIDE);
  const [, probe] = blankCanvas(1);
  probe.drawImage(image, 0, 0, 1, 1, 0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
  const [canvas, context] = blankCanvas(side, side, `rgb(${r}, ${g}, ${b})`);
  const [width, height] = [(wide * side) / edge, (high * side) / edge];
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (side - width) / 2, (side - height) / 2, width, height);
  return canvas;
}

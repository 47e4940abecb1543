// Five example symbols, each in a few variants.

const range = (n) => Array.from({ length: n + 1 }, (_, i) => i / n);
const circle = range(40).map((s) => [Math.cos(6.6 * s - 1.4), Math.sin(6.6 * s - 1.4)]);
const wave = range(40).map((s) => [2 * s - 1, -0.45 * Math.sin(12.6 * s)]);
const spiral = range(120).map((s) => [(0.08 + 0.92 * s) * Math.cos(14 * s), (0.08 + 0.92 * s) * Math.sin(14 * s)]);
const line = (...points) =>
  points.slice(1).flatMap(([x, y], i) => range(12).map((s) => [points[i][0] * (1 - s) + x * s, points[i][1] * (1 - s) + y * s]));

// Strokes in -1..1.
const SYMBOLS = {
  circle: [circle],
  cross: [line([-0.9, 0], [0.9, 0]), line([0, -0.9], [0, 0.9])],
  triangle: [line([0, -0.9], [0.95, 0.8], [-0.95, 0.8], [0, -0.9])],
  wave: [wave],
  spiral: [spiral],
};
export const NAMES = Object.keys(SYMBOLS);

// Rotation, width, height, slant and bend of each variant.
const VARIANTS = [
  [0.05, 0.62, 0.66, 0.05, 0.05],
  [-0.14, 0.7, 0.56, -0.12, -0.08],
  [0.17, 0.52, 0.62, 0.14, 0.07],
];

export function drawSymbol(name, variant) {
  const [rotation, width, height, slant, bend] = VARIANTS[variant];
  const [cos, sin] = [Math.cos(rotation), Math.sin(rotation)];
  const strokes = SYMBOLS[name].map((stroke) =>
    stroke.map(([x, y]) => {
      const [u, v] = [width * (x + slant * y + bend * y * y), height * (y + bend * Math.sin(3 * x))];
      return [0.5 + (cos * u - sin * v) / 2, 0.5 + (sin * u + cos * v) / 2];
    }),
  );
  return { strokes, picture: null };
}

// How does a drawing become an image like those of training? As strokes it is centred, brought to the usual size, and drawn with
// a pen of the usual width, dark on light: the server then averages it down to the model's side and turns it into light on dark.

export const PEN = 1.3 / 28; // of the side, as tasks/glyphs.py draws: a radius of 1.3 half pixels at 28 x 28
const SHARE = 0.53; // of the side: the longer side of a letter there, on average, as the pen runs
const MOST = 3; // times that a small drawing is enlarged
const FINE = 4; // pixels drawn for one of the model's
const LARGEST = 512; // side of an uploaded picture

// Strokes are lists of [x, y] in 0..1; a picture is a canvas and takes the place of paper.
export const empty = (drawing) => !drawing.picture && drawing.strokes.length === 0;

function fitted(strokes) {
  const xs = strokes.flat().map((p) => p[0]);
  const ys = strokes.flat().map((p) => p[1]);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min(SHARE / Math.max(right - left, bottom - top, 1e-6), MOST);
  return strokes.map((s) => s.map(([x, y]) => [0.5 + scale * (x - (left + right) / 2), 0.5 + scale * (y - (top + bottom) / 2)]));
}

export function trace(context, strokes, side, colour = "#000") {
  context.strokeStyle = colour;
  context.lineWidth = PEN * side;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
    for (const [x, y] of stroke) context.lineTo(x * side, y * side); // of one point: a dot, thanks to the round caps
    context.stroke();
  }
}

function sheet(width, height = width, colour = "#fff") {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
  return [canvas, context];
}

// What is sent, as a canvas; `side` is that of the model's images.
export function rendered(drawing, side) {
  if (drawing.picture && !drawing.strokes.length) return drawing.picture;
  const [canvas, context] = sheet(FINE * side);
  if (drawing.picture) context.drawImage(drawing.picture, 0, 0, canvas.width, canvas.height);
  trace(context, drawing.picture ? drawing.strokes : fitted(drawing.strokes), canvas.width);
  return canvas;
}

export const png = (drawing, side) => rendered(drawing, side).toDataURL("image/png").split(",")[1];

// An image file as a square picture: whole, on paper of its corner's colour, for drawings; its middle for colour models.
export async function picture(file, colour) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser can read.`);
  }
  const edge = (colour ? Math.min : Math.max)(bitmap.width, bitmap.height);
  const side = Math.min(edge, LARGEST);
  const [, probe] = sheet(1);
  probe.drawImage(bitmap, 0, 0, 1, 1, 0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
  const [canvas, context] = sheet(side, side, `rgb(${r}, ${g}, ${b})`);
  const [width, height] = [(bitmap.width * side) / edge, (bitmap.height * side) / edge];
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (side - width) / 2, (side - height) / 2, width, height);
  return canvas;
}

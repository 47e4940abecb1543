// The filters of a generated network, layer by layer, and what each layer makes of the test drawing.

import { element } from "./cards.js";
import { signed } from "./views.js";

const GAP = 1; // cells between two filters
const CELL = 6; // pixels a number of a filter, before scaling to the screen
const $ = (id) => document.getElementById(id);

export class FilterView {
  constructor() {
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  hide() {
    this.operations = null;
    $("filters").hidden = true;
  }

  // made: of `activations`, or null without a drawing.
  show(operations, made) {
    const layers = operations.filter((o) => o.kind === "convolve").length;
    if (!layers) return;
    if (this.operations !== operations) {
      const names = Array.from({ length: layers }, (_, i) => `Layer ${i + 1}`);
      $("layers").replaceChildren(...names.map((name) => this.layer(name)));
    }
    [this.operations, this.made] = [operations, made];
    $("filters").hidden = false;
    this.draw();
  }

  layer(name) {
    const [filters, maps] = ["filters", "maps"].map((className) => element("canvas", { className }));
    for (const canvas of [filters, maps]) canvas.setAttribute("role", "img");
    return element("li", {}, element("span", { className: "name", textContent: name }), filters, maps);
  }

  draw() {
    if (!this.operations) return;
    const first = this.operations.flatMap((o, i) => (o.kind === "convolve" ? [i] : []));
    first.forEach((place, layer) => {
      const [filters, maps] = $("layers").children[layer].querySelectorAll("canvas");
      this.drawFilters(filters, layer, this.operations[place]);
      maps.hidden = !this.made;
      if (this.made) this.drawMaps(maps, layer, place, first[layer + 1] ?? this.operations.length);
    });
  }

  // One row of squares an input channel, one column a filter.
  drawFilters(canvas, layer, { weight, inputs: [channels], shape: [outputs], sizes: { kernel } }) {
    const size = kernel ** 2;
    const squares = Array.from({ length: channels * outputs }, (_, i) => {
      const start = ((i % outputs) * channels + Math.floor(i / outputs)) * size;
      return weight.slice(start, start + size);
    });
    mosaic(canvas, squares, kernel, outputs);
    const counted = `${outputs} filters of ${channels} x ${kernel} x ${kernel} numbers`;
    canvas.setAttribute("aria-label", `Layer ${layer + 1}: ${counted}, as a heat map.`);
  }

  // What the operations first..end - 1 make, the last of more than one pixel.
  drawMaps(canvas, layer, first, end) {
    const last = this.operations.slice(0, end).findLastIndex((o) => o.shape[1] > 1);
    const [channels, h, w] = this.operations[Math.max(last, first)].shape;
    const values = Array.from(this.made[Math.max(last, first) + 1]);
    mosaic(canvas, Array.from({ length: channels }, (_, c) => values.slice(c * h * w, (c + 1) * h * w)), w, channels);
    canvas.setAttribute("aria-label", `What layer ${layer + 1} makes of the drawing: ${channels} pictures of ${h} x ${w} numbers.`);
  }
}

// Squares of side x side numbers, in rows of `columns`.
function mosaic(canvas, squares, side, columns) {
  const rows = Math.ceil(squares.length / columns);
  const step = side + GAP;
  [canvas.width, canvas.height] = [CELL * (columns * step - GAP), CELL * (rows * step - GAP)];
  const context = canvas.getContext("2d");
  const colour = signed(Math.max(...squares.flat().map(Math.abs)));
  squares.forEach((square, i) => {
    const [left, top] = [(i % columns) * step, Math.floor(i / columns) * step];
    square.forEach((value, j) => {
      context.fillStyle = colour(value);
      context.fillRect(CELL * (left + (j % side)), CELL * (top + Math.floor(j / side)), CELL, CELL);
    });
  });
}

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
    const places = this.operations.flatMap((o, i) => (o.kind === "convolve" ? [i] : []));
    places.forEach((place, layer) => {
      const [filters, maps] = $("layers").children[layer].querySelectorAll("canvas");
      const { weight, inputs, shape, sizes } = this.operations[place];
      // One row of squares an input channel, one column a filter.
      const tiles = Array.from({ length: inputs[0] * shape[0] }, (_, i) => [i % shape[0], Math.floor(i / shape[0])]);
      const size = sizes.kernel ** 2;
      const squares = tiles.map(([o, c]) => weight.slice((o * inputs[0] + c) * size, (o * inputs[0] + c + 1) * size));
      mosaic(filters, squares, sizes.kernel, shape[0]);
      const counted = `${shape[0]} filters of ${inputs[0]} x ${sizes.kernel} x ${sizes.kernel} numbers`;
      filters.setAttribute("aria-label", `Layer ${layer + 1}: ${counted}, as a heat map.`);
      maps.hidden = !this.made;
      if (!this.made) return;
      const end = places[layer + 1] ?? this.operations.findIndex((o, i) => i > place && o.shape.length < 3);
      const last = this.lastMap(place, end < 0 ? this.operations.length : end);
      const [channels, h, w] = this.operations[last].shape;
      const values = Array.from(this.made[last + 1]);
      mosaic(maps, Array.from({ length: channels }, (_, c) => values.slice(c * h * w, (c + 1) * h * w)), w, channels);
      maps.setAttribute("aria-label", `What layer ${layer + 1} makes of the drawing: ${channels} pictures of ${h} x ${w} numbers.`);
    });
  }

  // The last operation of a layer whose pictures still have more than one pixel.
  lastMap(first, end) {
    let last = first;
    for (let i = first; i < end; i += 1) if (this.operations[i].shape[1] > 1) last = i;
    return last;
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

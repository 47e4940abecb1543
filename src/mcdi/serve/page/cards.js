// A card holds the examples of one class: a name, a drawing pad and thumbnails.

import { loadPicture, render } from "./ink.js";
import { Pad } from "./pad.js";
import { dropTarget } from "./photos.js";

export const MAX_CLASSES = 10;
const THUMB = 80;

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// page: changed(), renamed(), removed(card), announce(text), showError(error), colour() and side() of the model's images, and frame()
// of the camera.
export class Card {
  constructor(number, page) {
    this.page = page;
    this.drawings = [];
    this.defaultName = `class ${number}`;
    this.input = element("input", { value: "", maxLength: 40, placeholder: this.defaultName, oninput: () => this.rename() });
    this.remove = element("button", { type: "button", className: "remove", textContent: "×", onclick: () => page.removed(this) });
    this.canvas = element("canvas", { className: "pad" });
    this.pad = new Pad(this.canvas, { changed: () => this.changed(), moved: () => {}, announce: page.announce });
    this.nextButton = element("button", { type: "button", className: "next", textContent: "Next example", onclick: () => this.next() });
    this.undo = element("button", { type: "button", className: "undo", textContent: "Undo", onclick: () => this.pad.undo() });
    this.file = element("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => this.load(this.file.files) });
    this.upload = element("button", { type: "button", textContent: "Upload", onclick: () => this.file.click() });
    this.take = element("button", { type: "button", className: "take", textContent: "Take photo", onclick: () => this.add([page.frame()]) });
    this.thumbs = element("ul", { className: "thumbs" });
    const top = element("div", { className: "top" }, this.input, this.remove);
    const buttons = element("div", { className: "buttons" }, this.nextButton, this.undo, this.upload, this.take, this.file);
    this.node = element("li", { className: "card" }, top, this.canvas, this.thumbs, buttons);
    dropTarget(this.node, (files) => this.load(files.map(([, file]) => file)));
    this.rename();
    this.changed(false);
  }

  get name() {
    return this.input.value.trim() || this.defaultName;
  }

  set name(value) {
    this.input.value = value;
    this.rename();
  }

  get examples() {
    return this.pad.empty ? this.drawings : [...this.drawings, this.pad.drawing];
  }

  set(drawings, drawing) {
    this.drawings = drawings;
    this.pad.set(drawing);
    this.changed(false);
  }

  rename() {
    const { name } = this;
    this.input.setAttribute("aria-label", `Name of ${this.defaultName}`);
    this.remove.setAttribute("aria-label", `Remove ${name}`);
    this.nextButton.setAttribute("aria-label", `Next example of ${name}`);
    this.undo.setAttribute("aria-label", `Undo the last stroke of ${name}`);
    this.upload.setAttribute("aria-label", `Upload images of ${name}`);
    this.take.setAttribute("aria-label", `Take a photo of ${name}`);
    this.thumbs.setAttribute("aria-label", `Examples of ${name}`);
    this.describe();
    this.page.renamed();
  }

  describe() {
    const count = this.examples.length;
    this.pad.label(`Drawing pad of ${this.name}, ${count} ${count === 1 ? "example" : "examples"}`);
    this.nextButton.disabled = this.undo.disabled = this.pad.empty;
  }

  changed(notify = true) {
    this.show();
    this.describe();
    if (notify) this.page.changed();
  }

  next() {
    this.drawings.push(this.pad.take());
    this.changed();
    this.page.announce(`example ${this.drawings.length} of ${this.name} saved`);
    this.canvas.focus({ preventScroll: true });
  }

  async load(files) {
    const pictures = [];
    for (const file of files) {
      try {
        pictures.push(await loadPicture(file, this.page.colour()));
      } catch (error) {
        this.page.showError(error);
      }
    }
    this.file.value = "";
    this.add(pictures);
  }

  add(pictures) {
    this.drawings.push(...pictures.map((picture) => ({ strokes: [], picture })));
    this.changed();
  }

  // Thumbnails of the images that are sent.
  show() {
    this.thumbs.replaceChildren(
      ...this.drawings.map((drawing, i) => {
        const canvas = element("canvas", { width: THUMB, height: THUMB, className: drawing.picture ? "" : "ink" });
        canvas.getContext("2d").drawImage(render(drawing, this.page.side()), 0, 0, THUMB, THUMB);
        canvas.setAttribute("aria-hidden", "true");
        const button = element("button", { type: "button", textContent: "×", onclick: () => this.drop(i) });
        button.setAttribute("aria-label", `Delete example ${i + 1} of ${this.name}`);
        return element("li", {}, canvas, button);
      }),
    );
  }

  drop(i) {
    this.drawings.splice(i, 1);
    this.changed();
    this.page.announce("example deleted");
    (this.thumbs.querySelectorAll("button")[Math.min(i, this.drawings.length - 1)] ?? this.canvas).focus();
  }
}

// Unique labels: two cards of the same name are two classes.
export function labels(cards) {
  const seen = new Set();
  return cards.map((card) => {
    let label = card.name;
    for (let n = 2; seen.has(label); n += 1) label = `${card.name} (${n})`;
    seen.add(label);
    return label;
  });
}

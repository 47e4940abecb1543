// Where do the examples of a class live? On a card: a name, a pad, and small pictures of what was kept.

import { picture, rendered } from "./ink.js";
import { Pad } from "./pad.js";

export const MOST = 10;
const THUMB = 80;

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// told: changed(), renamed(), removed(card), say(text), fail(error), and colour() and side() of the model's images.
export class Card {
  constructor(number, told) {
    this.told = told;
    this.kept = [];
    this.spare = `class ${number}`;
    this.input = element("input", { value: "", maxLength: 40, placeholder: this.spare, oninput: () => this.rename() });
    this.remove = element("button", { type: "button", className: "cross", textContent: "×", onclick: () => told.removed(this) });
    this.canvas = element("canvas", { className: "pad" });
    this.pad = new Pad(this.canvas, { changed: () => this.changed(), moved: () => {}, say: told.say });
    this.keep = element("button", { type: "button", className: "keep", textContent: "Next example", onclick: () => this.next() });
    this.undo = element("button", { type: "button", textContent: "Undo", onclick: () => this.pad.undo() });
    this.file = element("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => this.load() });
    this.upload = element("button", { type: "button", textContent: "Upload", onclick: () => this.file.click() });
    this.thumbs = element("ul", { className: "thumbs" });
    const top = element("div", { className: "top" }, this.input, this.remove);
    const buttons = element("div", { className: "buttons" }, this.keep, this.undo, this.upload, this.file);
    this.node = element("li", { className: "card" }, top, this.canvas, this.thumbs, buttons);
    this.rename();
    this.changed(false);
  }

  get name() {
    return this.input.value.trim() || this.spare;
  }

  set name(value) {
    this.input.value = value;
    this.rename();
  }

  get examples() {
    return this.pad.empty ? this.kept : [...this.kept, this.pad.drawing];
  }

  set(kept, drawing) {
    this.kept = kept;
    this.pad.set(drawing);
    this.changed(false);
  }

  rename() {
    const { name } = this;
    this.input.setAttribute("aria-label", `Name of ${this.spare}`);
    this.remove.setAttribute("aria-label", `Remove ${name}`);
    this.keep.setAttribute("aria-label", `Next example of ${name}`);
    this.undo.setAttribute("aria-label", `Undo the last stroke of ${name}`);
    this.upload.setAttribute("aria-label", `Upload images of ${name}`);
    this.thumbs.setAttribute("aria-label", `Examples of ${name}`);
    this.describe();
    this.told.renamed();
  }

  describe() {
    const count = this.examples.length;
    this.pad.label(`Drawing pad of ${this.name}, ${count} ${count === 1 ? "example" : "examples"}`);
    this.keep.disabled = this.undo.disabled = this.pad.empty;
  }

  changed(tell = true) {
    this.show();
    this.describe();
    if (tell) this.told.changed();
  }

  next() {
    this.kept.push(this.pad.take());
    this.changed();
    this.told.say(`example ${this.kept.length} of ${this.name} kept`);
    this.canvas.focus({ preventScroll: true });
  }

  async load() {
    for (const file of this.file.files) {
      try {
        this.kept.push({ strokes: [], picture: await picture(file, this.told.colour()) });
      } catch (error) {
        this.told.fail(error);
      }
    }
    this.file.value = "";
    this.changed();
  }

  // Small pictures of what is sent.
  show() {
    this.thumbs.replaceChildren(
      ...this.kept.map((drawing, i) => {
        const canvas = element("canvas", { width: THUMB, height: THUMB, className: drawing.picture ? "" : "ink" });
        canvas.getContext("2d").drawImage(rendered(drawing, this.told.side()), 0, 0, THUMB, THUMB);
        canvas.setAttribute("aria-hidden", "true");
        const button = element("button", { type: "button", textContent: "×", onclick: () => this.drop(i) });
        button.setAttribute("aria-label", `Delete example ${i + 1} of ${this.name}`);
        return element("li", {}, canvas, button);
      }),
    );
  }

  drop(i) {
    this.kept.splice(i, 1);
    this.changed();
    this.told.say("example deleted");
    (this.thumbs.querySelectorAll("button")[Math.min(i, this.kept.length - 1)] ?? this.canvas).focus();
  }
}

// Labels to send, all different: two cards of one name are still two classes.
export function labels(cards) {
  const seen = new Set();
  return cards.map((card) => {
    let label = card.name;
    for (let n = 2; seen.has(label); n += 1) label = `${card.name} (${n})`;
    seen.add(label);
    return label;
  });
}

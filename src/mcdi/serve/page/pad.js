// A drawing pad for mouse, touch, pen and keyboard: arrow keys move the pen, Space lowers and lifts it.

import { empty, trace } from "./ink.js";

const PIXELS = 320;
const STEP = { coarse: 1 / 24, fine: 1 / 96 };
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const clamp = (v) => Math.min(1, Math.max(0, v));

export class Pad {
  // callbacks: changed() after a stroke is finished or removed, moved() while one is drawn, announce(text) for screen readers.
  constructor(canvas, callbacks) {
    this.canvas = canvas;
    this.callbacks = callbacks;
    this.drawing = { strokes: [], picture: null };
    this.stroke = null; // the current stroke
    this.pen = [0.5, 0.5];
    this.penShown = false; // the pen that the keyboard moves
    this.locked = false; // shows a picture, and takes no strokes
    canvas.width = canvas.height = PIXELS;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "drawing pad");
    canvas.addEventListener("pointerdown", (e) => this.down(e));
    canvas.addEventListener("pointermove", (e) => this.move(e));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(name, (e) => this.up(e));
    canvas.addEventListener("keydown", (e) => this.key(e));
    canvas.addEventListener("focus", () => this.show(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => {
      this.lift();
      this.show(false);
    });
    this.paint();
  }

  get empty() {
    return empty(this.drawing);
  }

  label(text) {
    this.canvas.setAttribute("aria-label", text);
  }

  set(drawing) {
    this.stroke = null;
    this.drawing = drawing;
    this.paint();
  }

  // Return the drawing and clear the pad.
  take() {
    const { drawing } = this;
    this.set({ strokes: [], picture: null });
    return drawing;
  }

  undo() {
    this.lift();
    if (this.drawing.strokes.length) this.drawing.strokes.pop();
    else this.drawing.picture = null;
    this.paint();
    this.callbacks.changed();
  }

  clear() {
    this.take();
    this.callbacks.changed();
  }

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
  }

  down(event) {
    if (event.button !== 0 || !event.isPrimary || this.locked) return;
    event.preventDefault();
    this.lift();
    this.canvas.focus({ preventScroll: true });
    this.show(false);
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.begin(this.position(event));
  }

  move(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const e of events.length ? events : [event]) this.stroke.push(this.position(e));
    this.paint();
    this.callbacks.moved();
  }

  up(event) {
    if (event.pointerId === this.pointer) this.lift();
  }

  begin(point) {
    this.stroke = [point];
    this.drawing.strokes.push(this.stroke);
    this.paint();
  }

  lift() {
    this.pointer = null;
    if (!this.stroke) return;
    this.stroke = null;
    this.callbacks.changed();
  }

  key(event) {
    const move = MOVES[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || this.locked) return;
    if (move) this.step(move, event.shiftKey ? STEP.fine : STEP.coarse);
    else if (event.key === " " || event.key === "Enter") this.toggle();
    else if (event.key === "Backspace" || event.key === "Delete") this.undo();
    else return;
    event.preventDefault();
    this.show(true);
  }

  step([x, y], size) {
    this.pen = [clamp(this.pen[0] + size * x), clamp(this.pen[1] + size * y)];
    if (!this.stroke) return;
    this.stroke.push(this.pen);
    this.callbacks.moved();
  }

  toggle() {
    if (this.stroke) this.lift();
    else this.begin(this.pen);
    this.callbacks.announce(this.stroke ? "pen down" : "pen up");
  }

  show(pen) {
    this.penShown = pen && !this.locked;
    this.paint();
  }

  paint() {
    const context = this.canvas.getContext("2d");
    const { strokes, picture } = this.drawing;
    this.canvas.classList.toggle("ink", !picture);
    context.clearRect(0, 0, PIXELS, PIXELS);
    if (picture) context.drawImage(picture, 0, 0, PIXELS, PIXELS);
    trace(context, strokes, PIXELS);
    if (!this.penShown) return;
    const [x, y] = this.pen.map((v) => v * PIXELS);
    context.beginPath();
    context.arc(x, y, 9, 0, 2 * Math.PI);
    context.moveTo(x - 15, y);
    context.lineTo(x + 15, y);
    context.moveTo(x, y - 15);
    context.lineTo(x, y + 15);
    context.lineWidth = 2.5;
    context.strokeStyle = this.stroke ? "#b3400a" : "#3d5a80";
    context.stroke();
  }
}

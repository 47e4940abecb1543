// The states of the chain, shown by slider or as an animation.

import { element } from "./cards.js";
import { Landscape, Matrix } from "./views.js";

const SECONDS = 3; // duration of the animation
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");
const $ = (id) => document.getElementById(id);

export class ChainView {
  constructor() {
    this.landscape = new Landscape($("landscape"));
    this.matrix = new Matrix($("matrix"));
    this.steps = null;
    $("position").addEventListener("input", () => {
      this.stop();
      this.draw();
    });
    $("play").addEventListener("click", () => (this.playing ? this.stop() : this.play()));
    new ResizeObserver(() => this.draw()).observe($("chain"));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  hide(message) {
    this.stop();
    this.steps = null;
    $("chain-hint").textContent = message;
    $("chain-views").hidden = true;
  }

  // The first chain is animated, unless the user prefers reduced motion; later ones are shown at their end.
  show(chain, landscape, names) {
    const animate = !this.shown && !reducedMotion.matches;
    this.shown = true;
    this.stop();
    this.steps = chain.steps;
    this.landscape.show(landscape);
    this.matrix.show(chain.steps);
    $("chain-hint").textContent = "";
    $("chain-views").hidden = false;
    $("position").max = chain.steps.length - 1;
    $("position").value = chain.steps.length - 1;
    const named = names.length === chain.steps[0].weights.length;
    $("rows").replaceChildren(...(named ? names.map((name) => element("li", { textContent: name })) : []));
    $("shape").textContent = `${chain.shape[0]} × ${chain.shape[1]} numbers${named ? "" : ", averaged in blocks"}.`;
    this.draw();
    if (animate) this.play();
  }

  draw() {
    if (!this.steps) return;
    const position = Number($("position").value);
    const { t, loss } = this.steps[position];
    const last = this.steps[this.steps.length - 1];
    this.landscape.draw(t);
    this.matrix.draw(t);
    const text = `step ${t} of ${last.t}, loss ${loss.toPrecision(3)}`;
    $("position-out").textContent = text;
    $("position").setAttribute("aria-valuetext", text);
    const change = `from ${this.steps[0].loss.toPrecision(3)} at the noise to ${last.loss.toPrecision(3)} at the weights`;
    $("landscape").setAttribute("aria-label", `The chain's path over the loss, at ${text}. The loss changes ${change}.`);
    $("matrix").setAttribute("aria-label", `The weights at ${text}, as a heat map.`);
  }

  play() {
    const count = this.steps.length - 1;
    const start = performance.now();
    $("play").textContent = "Stop";
    this.playing = true;
    const frame = (now) => {
      if (!this.playing) return;
      const progress = Math.min(1, Math.max(0, now - start) / (1000 * SECONDS));
      const position = String(Math.round(progress * count));
      if ($("position").value !== position) {
        $("position").value = position;
        this.draw();
      }
      if (progress < 1) this.frame = requestAnimationFrame(frame);
      else this.stop();
    };
    $("position").value = 0;
    this.draw();
    this.frame = requestAnimationFrame(frame);
  }

  stop() {
    this.playing = false;
    cancelAnimationFrame(this.frame);
    $("play").textContent = "Play";
  }
}

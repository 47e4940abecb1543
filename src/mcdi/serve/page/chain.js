// How did the weights come about? The chain's states, one after another, by slider or played.

import { element } from "./cards.js";
import { Landscape, Matrix } from "./views.js";

const SECONDS = 3; // of a whole chain
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const $ = (id) => document.getElementById(id);

export class ChainView {
  constructor() {
    this.landscape = new Landscape($("landscape"));
    this.matrix = new Matrix($("matrix"));
    this.steps = null;
    $("at").addEventListener("input", () => {
      this.stop();
      this.draw();
    });
    $("play").addEventListener("click", () => (this.playing ? this.stop() : this.play()));
    new ResizeObserver(() => this.draw()).observe($("chain"));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  hide(sentence) {
    this.stop();
    this.steps = null;
    $("chain-hint").textContent = sentence;
    $("chain-views").hidden = true;
  }

  // The first chain plays by itself, unless less motion is asked for; later ones are shown at their end.
  show(chain, landscape, names) {
    const first = !this.seen && !calm.matches;
    this.seen = true;
    this.stop();
    this.steps = chain.steps;
    this.landscape.show(landscape);
    this.matrix.show(chain.steps);
    $("chain-hint").textContent = "";
    $("chain-views").hidden = false;
    $("at").max = chain.steps.length - 1;
    $("at").value = chain.steps.length - 1;
    const own = names.length === chain.steps[0].weights.length;
    $("rows").replaceChildren(...(own ? names.map((name) => element("li", { textContent: name })) : []));
    $("shape").textContent = `${chain.shape[0]} × ${chain.shape[1]} numbers${own ? "" : ", in blocks"}.`;
    this.draw();
    if (first) this.play();
  }

  draw() {
    if (!this.steps) return;
    const at = Number($("at").value);
    const { t, loss } = this.steps[at];
    const last = this.steps[this.steps.length - 1];
    this.landscape.draw(t);
    this.matrix.draw(t);
    const text = `step ${t} of ${last.t}, loss ${loss.toPrecision(3)}`;
    $("at-out").textContent = text;
    $("at").setAttribute("aria-valuetext", text);
    const whole = `from ${this.steps[0].loss.toPrecision(3)} in noise to ${last.loss.toPrecision(3)} at the weights`;
    $("landscape").setAttribute("aria-label", `The chain's path over the loss, at ${text}. The loss goes ${whole}.`);
    $("matrix").setAttribute("aria-label", `The weights at ${text}, as a map of colours.`);
  }

  play() {
    const count = this.steps.length - 1;
    const start = performance.now();
    $("play").textContent = "Stop";
    this.playing = true;
    const frame = (now) => {
      if (!this.playing) return;
      const share = Math.min(1, Math.max(0, now - start) / (1000 * SECONDS));
      const at = String(Math.round(share * count));
      if ($("at").value !== at) {
        $("at").value = at;
        this.draw();
      }
      if (share < 1) this.frame = requestAnimationFrame(frame);
      else this.stop();
    };
    $("at").value = 0;
    this.draw();
    this.frame = requestAnimationFrame(frame);
  }

  stop() {
    this.playing = false;
    cancelAnimationFrame(this.frame);
    $("play").textContent = "Play";
  }
}

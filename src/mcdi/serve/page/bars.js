// Probabilities of the classes, a bar each.

import { element } from "./cards.js";

export const percent = (p) => `${(100 * p).toFixed(p > 0.995 || p < 0.005 ? 0 : 1)} %`;

// rows: [name, probability, whether it is the most likely class].
export function drawBars(list, rows) {
  if (list.children.length !== rows.length) list.replaceChildren(...rows.map(bar));
  rows.forEach(([name, p, best], i) => {
    const row = list.children[i];
    row.classList.toggle("best", best);
    row.querySelector(".name").textContent = name;
    row.querySelector(".fill").style.width = `${100 * p}%`;
    row.querySelector(".probability").textContent = percent(p);
  });
}

function bar() {
  const track = element("span", { className: "track" }, element("div", { className: "fill" }));
  track.setAttribute("aria-hidden", "true");
  return element("li", {}, element("span", { className: "name" }), track, element("span", { className: "probability" }));
}

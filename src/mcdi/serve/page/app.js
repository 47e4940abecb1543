// What happens when a stroke ends? Weights are made for the examples, then the test drawing is classified, then the chain is drawn.

import { debounced, models, newest, post, send, setKey } from "./api.js";
import { Card, MOST, element, labels } from "./cards.js";
import { ChainView } from "./chain.js";
import { picture, png } from "./ink.js";
import { Pad } from "./pad.js";
import { NAMES, drawn } from "./symbols.js";

const $ = (id) => document.getElementById(id);
const WAIT = { weights: 120, chain: 350 }; // milliseconds without a change
const GRID = 21; // points along each side of the landscape
const state = { models: [], model: null, cards: [], made: 0, seed: 0, steps: null, task: null, lost: false };
const narrow = window.matchMedia("(max-width: 56rem)"); // as in style.css
const view = new ChainView();

function fail(error) {
  if (error.status === 401) $("key-form").hidden = false;
  $("error").textContent = error.message;
}

const well = () => ($("error").textContent = "");
const side = () => state.model?.images?.[1] ?? 28;
const colour = () => state.model?.images?.[0] === 3;
const say = (text) => ($("said").textContent = text);
const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share < 0.005 ? 0 : 1)} %`;

// Examples of the classes that have some, or null with a sentence where they are too few or too many for the model.
function examples() {
  const cards = state.cards.filter((card) => card.examples.length);
  const [fewest, most] = state.model.classes;
  if (cards.length < fewest || cards.length > most) {
    const wanted = fewest === most ? `exactly ${most} classes` : `${fewest} classes or more`;
    $("made").textContent = `Draw examples of ${wanted}: ${cards.length} ${cards.length === 1 ? "has" : "have"} some so far.`;
    return null;
  }
  const named = labels(cards);
  const images = cards.flatMap((card) => card.examples.map((drawing) => png(drawing, side())));
  const body = {
    model: state.model.name,
    support: { images },
    labels: cards.flatMap((card, i) => card.examples.map(() => named[i])),
    seed: state.seed,
    ...(state.steps === null ? {} : { steps: state.steps }),
  };
  return { body, cards: new Map(named.map((label, i) => [label, cards[i]])) };
}

const weights = newest(async () => {
  const found = usable() ? examples() : null;
  $("download").disabled = !found;
  if (!found) return forget();
  const start = performance.now();
  const made = await post("/v1/generate", { ...found.body, format: "handle" });
  well();
  state.task = { ...found, handle: made.handle, classes: made.classes };
  const numbers = Object.values(made.names).reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const [server, all] = [made.milliseconds, performance.now() - start].map((ms) => ms.toFixed(ms < 10 ? 1 : 0));
  const trust = made.trust < 0.995 ? ` Trust ${made.trust.toFixed(2)}; 1 is a task like those of training.` : "";
  $("made").textContent = `${numbers} weights for ${made.classes.length} classes in ${server} ms (${all} ms round trip).${trust}`;
  predict();
  later();
}, failed);

const changed = debounced(weights, WAIT.weights);

function failed(error) {
  forget();
  $("made").textContent = "No weights: see the message below.";
  fail(error);
}

function forget() {
  state.task = null;
  blank("");
  view.hide("Generate weights first: two classes with a drawing each.");
}

const predict = newest(async (stale) => {
  const { task } = state;
  if (!task || test.empty) return blank(task ? "Draw here to see what it is taken for." : "");
  let told;
  try {
    told = await post("/v1/predict", { handle: task.handle, queries: { images: [png(test.drawing, side())] } });
  } catch (error) {
    if (error.status !== 404 || state.lost) throw error;
    state.lost = true; // the server dropped the handle for newer ones, or was started anew
    return weights();
  }
  state.lost = false;
  if (!stale() && task === state.task && !test.empty) bars(task, told);
}, fail);

function blank(text) {
  $("bars").replaceChildren();
  $("prediction").textContent = text;
  test.label("Test pad. There is no prediction yet.");
}

function bars(task, { labels: [best], probabilities: [shares], classes }) {
  const name = (label) => task.cards.get(label)?.name ?? label;
  const order = [...task.cards.keys()].map((label) => [label, shares[classes.indexOf(label)]]);
  if ($("bars").children.length !== order.length) $("bars").replaceChildren(...order.map(bar));
  order.forEach(([label, share], i) => {
    const row = $("bars").children[i];
    row.classList.toggle("best", label === best);
    row.querySelector(".name").textContent = name(label);
    row.querySelector(".fill").style.width = `${100 * share}%`;
    row.querySelector(".share").textContent = percent(share);
  });
  const likeliest = `${name(best)}, ${percent(Math.max(...shares))}`;
  test.label(`Test pad. Prediction: ${likeliest}`);
  if (!test.stroke) $("prediction").textContent = `Taken for: ${likeliest}`;
}

function bar() {
  const track = element("span", { className: "track" }, element("div", { className: "fill" }));
  track.setAttribute("aria-hidden", "true");
  return element("li", {}, element("span", { className: "name" }), track, element("span", { className: "share" }));
}

const look = newest(async (stale) => {
  const { task } = state;
  if (!task || !state.model.chain) return;
  const chain = await post("/v1/chain", task.body);
  const landscape = await post("/v1/landscape", { ...task.body, grid: GRID });
  if (stale() || task !== state.task) return;
  view.show(chain, landscape, task.classes.map((label) => task.cards.get(label).name));
}, (error) => {
  view.hide(error.message);
  if (error.status !== 422) fail(error); // a model without a chain says so where the chain would be
});

const later = debounced(look, WAIT.chain);

const test = new Pad($("test"), { changed: () => predict(), moved: () => predict(), say });

async function download() {
  const found = examples();
  if (!found) return;
  const data = await (await send("/v1/generate", { ...found.body, format: "safetensors" })).blob();
  const address = URL.createObjectURL(data);
  element("a", { href: address, download: `${state.model.name}.safetensors` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const usable = () => Boolean(state.model?.images) && state.model.labels === "classes";

function choose(model) {
  state.model = model;
  state.steps = null;
  const reads = model.texts ? "texts" : `feature vectors of ${model.features} numbers`;
  const what = model.images ? "predicts numbers, not classes" : `reads ${reads}, not images`;
  $("unfit").textContent = usable() ? "" : `${model.name} ${what}: there is nothing to draw for it. Programs use it by POST /v1/generate.`;
  $("main").hidden = $("fill").hidden = !usable();
  const chain = model.chain && usable();
  $("steps-field").hidden = $("again").hidden = $("trained").hidden = $("chain").hidden = !chain;
  $("seed").textContent = chain ? "" : `${model.method} makes the weights in one go: there are no denoising steps to choose or to watch.`;
  if (chain) $("steps").max = model.T;
  showSteps();
  state.cards.forEach((card) => card.show());
  forget();
  weights();
}

function showSteps() {
  const { T, steps: own } = state.model;
  $("steps").value = state.steps ?? own ?? 1;
  $("steps-out").textContent = state.steps === null ? `${own} of ${T}, as trained` : `${state.steps} of ${T}`;
  $("steps").setAttribute("aria-valuetext", $("steps-out").textContent);
  $("trained").disabled = state.steps === null;
}

function add() {
  state.made += 1;
  const card = new Card(state.made, { changed, renamed, removed, say, fail, colour, side });
  state.cards.push(card);
  $("cards").append(card.node);
  counted();
  return card;
}

function renamed() {
  if (!state.task) return;
  if (!test.empty) predict();
  later();
}

function removed(card) {
  state.cards.splice(state.cards.indexOf(card), 1);
  card.node.remove();
  say(`${card.name} removed`);
  counted();
  (state.cards[0]?.input ?? $("add")).focus();
  changed();
}

function counted() {
  $("add").disabled = state.cards.length >= MOST;
  state.cards.forEach((card) => (card.remove.disabled = state.cards.length <= 2));
}

function fill() {
  const own = state.cards.some((card) => card.examples.length && !NAMES.includes(card.name));
  if (own && !window.confirm("This replaces your drawings by five examples.")) return;
  while (state.cards.length > NAMES.length) state.cards.pop().node.remove();
  while (state.cards.length < NAMES.length) add();
  NAMES.forEach((name, i) => {
    state.cards[i].name = name;
    state.cards[i].set([drawn(name, 0)], drawn(name, 1));
  });
  test.set(drawn("spiral", 2));
  counted();
  weights();
  if (narrow.matches) $("test").scrollIntoView({ block: "center" }); // where the answer is seen
}

async function open() {
  state.models = await models();
  $("key-form").hidden = true;
  well();
  $("model").replaceChildren(...state.models.map((m) => element("option", { value: m.name, textContent: m.name })));
  $("model-field").hidden = state.models.length < 2;
  const first = state.models.find((m) => m.images && m.labels === "classes") ?? state.models[0];
  $("model").value = first.name;
  choose(first);
}

const on = (id, event, act) => $(id).addEventListener(event, (e) => (async () => act(e))().catch(fail));

for (let i = 0; i < 5; i += 1) add();
on("key-form", "submit", (event) => {
  event.preventDefault();
  setKey($("key").value);
  return open();
});
on("model", "change", () => choose(state.models.find((m) => m.name === $("model").value)));
on("fill", "click", fill);
on("add", "click", () => add().input.focus());
on("test-undo", "click", () => test.undo());
on("test-clear", "click", () => test.clear());
on("test-upload", "click", () => $("test-file").click());
on("test-file", "change", async () => {
  const [file] = $("test-file").files;
  $("test-file").value = "";
  test.set({ strokes: [], picture: await picture(file, colour()) });
  predict();
});
on("steps", "input", () => {
  state.steps = Number($("steps").value);
  showSteps();
  changed();
});
on("trained", "click", () => {
  state.steps = null;
  showSteps();
  weights();
});
on("again", "click", () => {
  state.seed += 1;
  $("seed").textContent = `Seed ${state.seed}. A model whose chains start without noise makes the same weights from every seed.`;
  weights();
});
on("download", "click", download);
open().catch(fail);

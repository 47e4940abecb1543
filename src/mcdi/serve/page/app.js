// The page: after every stroke it requests weights for the examples, a prediction for the test drawing, and the chain.

import { debounced, models, newest, post, save, send, setKey } from "./api.js";
import { drawBars, percent } from "./bars.js";
import { Card, MAX_CLASSES, element, labels } from "./cards.js";
import { ChainView } from "./chain.js";
import { FilterView } from "./filters.js";
import { encoded, ink, loadPicture } from "./ink.js";
import { activations, softmax } from "./network.js";
import { Pad } from "./pad.js";
import { Camera, byFolder, dropTarget } from "./photos.js";
import { NAMES, drawSymbol } from "./symbols.js";

const $ = (id) => document.getElementById(id);
const DELAY = { weights: 120, chain: 350 }; // milliseconds after the last change
const GRID = 21; // points along each side of the landscape
const state = { models: [], model: null, cards: [], cardCount: 0, seed: 0, steps: null, task: null, retried: false };
const narrow = window.matchMedia("(max-width: 56rem)"); // as in style.css
const NO_WEIGHTS = "Generate weights first: two classes with one example each.";
const view = new ChainView();
const filters = new FilterView();

function showError(error) {
  if (error.status === 401) $("key-form").hidden = false;
  $("error").textContent = error.message;
}

const clearError = () => ($("error").textContent = "");
const side = () => state.model?.images?.[1] ?? 28;
const colour = () => state.model?.images?.[0] === 3;
const announce = (text) => ($("announcement").textContent = text);

// The request for all classes with examples, or null and a message if the model needs more or fewer classes.
function examples() {
  const cards = state.cards.filter((card) => card.examples.length);
  const [fewest, most] = state.model.classes;
  if (cards.length < fewest || cards.length > most) {
    const needed = fewest === most ? `exactly ${most} classes` : `at least ${fewest} classes`;
    $("weights-status").textContent = `${colour() ? "Give photos" : "Draw examples"} of ${needed}; ${cards.length} so far.`;
    return null;
  }
  const names = labels(cards);
  const images = cards.flatMap((card) => card.examples.map((drawing) => encoded(drawing, side(), colour())));
  const body = {
    model: state.model.name,
    support: { images },
    labels: cards.flatMap((card, i) => card.examples.map(() => names[i])),
    seed: state.seed,
    ...(state.steps === null ? {} : { steps: state.steps }),
  };
  return { body, cards: new Map(names.map((label, i) => [label, cards[i]])) };
}

const weights = newest(async () => {
  const task = usable() ? examples() : null;
  for (const button of document.querySelectorAll(".download")) button.disabled = !task;
  if (!task) return reset();
  const start = performance.now();
  const answer = await post("/v1/generate", { ...task.body, format: local() ? "network" : "handle" });
  clearError();
  state.task = { ...task, handle: answer.handle, classes: answer.classes, operations: answer.operations };
  const numbers = Object.values(answer.names).reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const [server, total] = [answer.milliseconds, performance.now() - start].map((ms) => ms.toFixed(ms < 10 ? 1 : 0));
  const low = answer.confidence < 0.995 ? ` Confidence ${answer.confidence.toFixed(2)}: blended with ridge regression.` : "";
  const here = answer.operations ? " Your browser holds the network: predictions need no server." : "";
  $("weights-status").textContent = `${numbers} weights for ${answer.classes.length} classes in ${server} ms (${total} ms round trip).${low}${here}`;
  predict();
  chainLater();
}, failed);

const changed = debounced(weights, DELAY.weights);

function failed(error) {
  reset();
  $("weights-status").textContent = "No weights: see the message below.";
  showError(error);
}

function reset() {
  state.task = null;
  filters.hide();
  noPrediction("");
  view.hide(NO_WEIGHTS);
}

const predict = newest(async (stale) => {
  const { task } = state;
  const made = task?.operations && !test.empty ? activations(task.operations, ink(test.drawing, side())) : null;
  if (task?.operations) filters.show(task.operations, made);
  if (!task || test.empty) return noPrediction(!task ? "" : colour() ? "Drop a photo here to get a prediction." : "Draw here to get a prediction.");
  if (made) return showBars(task, softmax(made.at(-1)));
  let answer;
  try {
    answer = await post("/v1/predict", { handle: task.handle, queries: { images: [encoded(test.drawing, side(), colour())] } });
  } catch (error) {
    if (error.status !== 404 || state.retried) throw error;
    state.retried = true; // the server evicted the handle or was restarted
    return weights();
  }
  state.retried = false;
  if (!stale() && task === state.task && !test.empty) showBars(task, answer.probabilities[0]);
}, showError);

function noPrediction(text) {
  $("bars").replaceChildren();
  $("prediction").textContent = text;
  test.label("Test pad. There is no prediction yet.");
}

function showBars(task, probabilities) {
  const name = (label) => task.cards.get(label)?.name ?? label;
  const highest = Math.max(...probabilities);
  const best = task.classes[probabilities.indexOf(highest)];
  const rows = [...task.cards.keys()].map((label) => [name(label), probabilities[task.classes.indexOf(label)], label === best]);
  drawBars($("bars"), rows);
  const prediction = `Prediction: ${name(best)}, ${percent(highest)}`;
  test.label(`Test pad. ${prediction}`);
  if (!test.stroke) $("prediction").textContent = prediction;
}

const traceChain = newest(async (stale) => {
  const { task } = state;
  if (!task || $("chain").hidden) return;
  const chain = await post("/v1/chain", task.body);
  const landscape = await post("/v1/landscape", { ...task.body, grid: GRID });
  if (stale() || task !== state.task) return;
  view.show(chain, landscape, task.classes.map((label) => task.cards.get(label).name));
}, (error) => {
  view.hide(error.message);
  if (error.status !== 422) showError(error); // status 422 has its message in the chain section
});

const chainLater = debounced(traceChain, DELAY.chain);

const test = new Pad($("test"), { changed: () => predict(), moved: () => predict(), announce });

function showTest(picture) {
  test.set({ strokes: [], picture });
  predict();
}

const testFile = async (file) => file && showTest(await loadPicture(file, colour()));
const camera = new Camera($("camera"), showTest);

// A class for every folder that images lie in, in place of the classes so far.
async function openFolders(files) {
  const classes = byFolder(files, MAX_CLASSES);
  while (state.cards.length > Math.max(classes.length, 2)) state.cards.pop().node.remove();
  while (state.cards.length < classes.length) add();
  for (const [i, [name, images]] of classes.entries()) {
    state.cards[i].name = name;
    state.cards[i].set([], { strokes: [], picture: null });
    await state.cards[i].load(images); // and with it the weights
  }
  updateButtons();
}

async function download(format) {
  const task = examples();
  const file = `${state.model.name}.${format}`;
  if (task) await save(file, $(`download-${format}`), send("/v1/generate", { ...task.body, format }));
}

const local = () => state.model.runs_anywhere && !colour();
const usable = () => Boolean(state.model?.images) && state.model.labels === "classes";

function choose(model) {
  state.model = model;
  state.steps = null;
  const inputs = model.texts ? "texts" : `feature vectors of ${model.features} numbers`;
  const obstacle = model.images ? "predicts numbers, not classes" : `reads ${inputs}, not images`;
  $("model-note").textContent = usable() ? "" : `${model.name} ${obstacle}, so it cannot be used on this page. Use POST /v1/generate.`;
  $("main").hidden = $("fill").hidden = $("folder").hidden = !usable();
  document.body.classList.toggle("photos", colour());
  document.querySelector("h1").textContent = `${colour() ? "Show a few photos" : "Draw a few examples"}, get a classifier`;
  test.locked = colour();
  if (!colour()) camera.stop();
  // A whole network that is made in one step has no chain worth a look: longer ones were worse on validation tasks.
  const oneStep = model.runs_anywhere && model.steps === 1;
  const chain = model.chain && usable() && !oneStep;
  $("steps-field").hidden = $("resample").hidden = $("default-steps").hidden = $("chain").hidden = !chain;
  const reason = model.chain ? "longer chains were worse on validation tasks" : "it has no denoising chain";
  $("sampling-note").textContent = chain ? "" : `${model.method} generates the weights in one step: ${reason}.`;
  if (chain) $("steps").max = model.T;
  showSteps();
  state.cards.forEach((card) => card.show());
  reset();
  weights();
}

function showSteps() {
  const { T, steps: trained } = state.model;
  $("steps").value = state.steps ?? trained ?? 1;
  $("steps-out").textContent = state.steps === null ? `${trained} of ${T}, default` : `${state.steps} of ${T}`;
  $("steps").setAttribute("aria-valuetext", $("steps-out").textContent);
  $("default-steps").disabled = state.steps === null;
}

function add() {
  const frame = () => camera.frame();
  const card = new Card((state.cardCount += 1), { changed, renamed, removed, announce, showError, colour, side, frame });
  state.cards.push(card);
  $("cards").append(card.node);
  updateButtons();
  return card;
}

function renamed() {
  if (!state.task) return;
  if (!test.empty) predict();
  chainLater();
}

function removed(card) {
  state.cards.splice(state.cards.indexOf(card), 1);
  card.node.remove();
  announce(`${card.name} removed`);
  updateButtons();
  (state.cards[0]?.input ?? $("add")).focus();
  changed();
}

function updateButtons() {
  $("add").disabled = state.cards.length >= MAX_CLASSES;
  state.cards.forEach((card) => (card.remove.disabled = state.cards.length <= 2));
}

function fill() {
  const drawings = state.cards.some((card) => card.examples.length && !NAMES.includes(card.name));
  if (drawings && !window.confirm("This replaces your drawings with five examples.")) return;
  while (state.cards.length > NAMES.length) state.cards.pop().node.remove();
  while (state.cards.length < NAMES.length) add();
  NAMES.forEach((name, i) => {
    state.cards[i].name = name;
    state.cards[i].set([drawSymbol(name, 0)], drawSymbol(name, 1));
  });
  test.set(drawSymbol("spiral", 2));
  updateButtons();
  weights();
  if (narrow.matches) $("test").scrollIntoView({ block: "center" }); // shows the prediction
}

async function open() {
  state.models = await models();
  $("key-form").hidden = true;
  clearError();
  $("model").replaceChildren(...state.models.map((m) => element("option", { value: m.name, textContent: m.name })));
  $("model-field").hidden = state.models.length < 2;
  const first = state.models.find((m) => m.images && m.labels === "classes") ?? state.models[0];
  $("model").value = first.name;
  choose(first);
}

const on = (id, event, act) => $(id).addEventListener(event, (e) => (async () => act(e))().catch(showError));

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
  await testFile(file);
});
dropTarget($("test"), (files) => testFile(files[0]?.[1]).catch(showError));
dropTarget(document.body, (files) => openFolders(files).catch(showError));
on("folder", "click", () => {
  $("folder-file").value = ""; // the same folder can be opened again
  $("folder-file").click();
});
on("folder-file", "change", () => openFolders([...$("folder-file").files].map((file) => [file.webkitRelativePath, file])));
on("camera", "click", () => camera.toggle());
on("steps", "input", () => {
  state.steps = Number($("steps").value);
  showSteps();
  changed();
});
on("default-steps", "click", () => {
  state.steps = null;
  showSteps();
  weights();
});
on("resample", "click", () => {
  state.seed += 1;
  $("sampling-note").textContent = `Seed ${state.seed}. A deterministic chain gives the same weights for every seed.`;
  weights();
});
for (const format of ["safetensors", "onnx"]) on(`download-${format}`, "click", () => download(format));
open().catch(showError);

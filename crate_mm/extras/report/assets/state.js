// The selection: models A and B, image, layer, head and token. The URL holds the selection, so that a copied link opens
// the same view. Numbers are from 0 here and from 1 in the URL.

import { headsOf, report } from "./data.js";

const listeners = [];
const replaced = new Set(["lambda", "layer", "step", "ink"]); // sliders and drawings do not add to the history

// The last model named is A, unless another can run in the page. B is the last of the other models, an untrained one if
// there is one.
function openingModels() {
  const numbers = [...report.models.keys()];
  const running = numbers.filter((i) => report.models[i].running);
  const a = running.at(-1) ?? numbers.filter((i) => !report.models[i].untrained).at(-1) ?? numbers.at(-1);
  const others = numbers.filter((i) => i !== a);
  return { a, b: others.filter((i) => report.models[i].untrained).at(-1) ?? others.at(-1) ?? null };
}

// The first image that A has right and is sure of: a probability at or above the 0.9 quantile of its right answers.
function openingImage({ predicted }) {
  const right = report.images
    .map(({ label }, i) => ({ i, label, top: predicted?.[i]?.[0] }))
    .filter(({ label, top }) => top && label === top[0]);
  if (!right.length) return 0;
  const scores = right.map(({ top }) => top[1]).sort((a, b) => a - b);
  return right.find(({ top }) => top[1] >= scores[Math.floor(0.9 * (scores.length - 1))]).i;
}

const pairAtStart = openingModels();
const opening = {
  ...pairAtStart,
  image: openingImage(report.models[pairAtStart.a]),
  layer: report.models[pairAtStart.a].layers.length - 1,
  head: 0,
  cls: false, // whether the class token is chosen, else the patch at (y, x)
  y: 0.5, // of the chosen patch, as a share of the image's height
  x: 0.5,
  step: 8, // of a layer, in the section "layer": the last, where all are shown
  lambda: null, // of all layers, in the section "draw"; null: as trained
  off: "", // what is switched off there, such as "h2.1-3,d4.17"
  ink: "", // the drawing there
  measure: null,
  direction: null, // null: one that a class uses most
};
export const state = { ...opening };
export const ignored = []; // parts of the address that were not understood
readAddress();

// The numbers of layers and heads that can be chosen: the most of A and B.
export function mostOf(count) {
  return Math.max(...shownModels().map(({ model }) => count(model)));
}

export function depthOf(model) {
  return model.layers.length;
}

function readAddress() {
  const given = new Map(new URLSearchParams(location.hash.slice(1)));
  const whole = (name, most, least = 1) => {
    const text = given.get(name);
    given.delete(name);
    if (text === undefined) return null;
    const value = Number(text);
    if (text !== "" && Number.isInteger(value) && value >= least && value <= most) return value;
    ignored.push(name);
    return null;
  };
  const place = (name, key, most) => {
    const value = whole(name, most);
    state[key] = value === null ? opening[key] : value - 1;
  };
  ignored.length = 0;
  Object.assign(state, opening);
  place("a", "a", report.models.length);
  const b = whole("b", report.models.length, 0);
  if (b !== null) state.b = b ? b - 1 : null;
  if (state.b === state.a) state.b = opening.b === state.a ? null : opening.b;
  place("image", "image", report.images.length);
  place("layer", "layer", mostOf(depthOf));
  place("head", "head", mostOf(headsOf));
  place("dir", "direction", 1e6);
  state.step = whole("step", 8) ?? 8;
  for (const [name, text] of given) {
    const value = Number(text);
    if ((name === "y" || name === "x") && text !== "" && value >= 0 && value < 1) state[name] = value;
    else if (name === "token" && text === "cls") state.cls = true;
    else if (name === "measure" && Object.hasOwn(report.measures, text)) state.measure = text;
    else if (name === "lambda" && text !== "" && value >= 0 && value <= 10) state.lambda = value;
    else if (name === "off" && /^[hd]\d+\.\d+(-\d+)?(,[hd]\d+\.\d+(-\d+)?)*$/.test(text)) state.off = text;
    else if (name === "ink" && /^[\w.-]{1,1500}$/.test(text)) state.ink = text;
    else ignored.push(name);
  }
  fit();
}

// Keep the layer and the head within A and B.
function fit() {
  state.layer = Math.min(state.layer, mostOf(depthOf) - 1);
  state.head = Math.min(state.head, mostOf(headsOf) - 1);
}

export const INK_LETTERS = 1500; // of a drawing in the address; a longer one is left out

export function address(changed = {}) {
  const now = { ...state, ...changed };
  const parts = new URLSearchParams({ image: now.image + 1, layer: now.layer + 1, head: now.head + 1 });
  if (now.cls) parts.set("token", "cls");
  parts.set("y", now.y.toFixed(3));
  parts.set("x", now.x.toFixed(3));
  if (report.models.length > 1) {
    parts.set("a", now.a + 1);
    parts.set("b", now.b === null ? 0 : now.b + 1);
  }
  if (now.measure) parts.set("measure", now.measure);
  if (now.step < 8) parts.set("step", now.step);
  if (now.direction !== null) parts.set("dir", now.direction + 1);
  if (now.lambda !== null) parts.set("lambda", now.lambda);
  if (now.off) parts.set("off", now.off);
  if (now.ink && now.ink.length <= INK_LETTERS) parts.set("ink", now.ink);
  return `#${parts}`;
}

let late = null; // the timer of a change of the address
let last = -Infinity; // when a slider changed the address

// A browser limits how often the address may change: sliders change it four times a second. The selection itself has
// changed even if the browser refuses.
function writeAddress(add) {
  clearTimeout(late);
  const wait = add ? 0 : last + 250 - performance.now();
  if (wait > 0) {
    late = setTimeout(() => writeAddress(false), wait);
    return;
  }
  if (!add) last = performance.now();
  try {
    history[add ? "pushState" : "replaceState"](null, "", address());
  } catch {
    // refused
  }
}

export function choose(changes) {
  const old = { ...state };
  Object.assign(state, changes);
  fit();
  const changed = Object.keys(state).filter((name) => state[name] !== old[name]);
  if (changed.length) writeAddress(changed.some((name) => !replaced.has(name)));
  tell([...Object.keys(changes), ...changed]);
}

function tell(names) {
  for (const listener of listeners) listener(names);
}

window.addEventListener("popstate", () => {
  if (location.hash && !location.hash.includes("=")) return; // a link to a section
  readAddress();
  tell(Object.keys(state));
});

export function onChoice(listener) {
  listeners.push(listener);
}

// The chosen models, A and then B, if there is a B.
export function shownModels() {
  return [state.a, state.b].filter((i) => i !== null).map((index) => ({ model: report.models[index], index }));
}

// The untrained model with which the others are compared, or null.
export function untrainedModel() {
  return report.models.find(({ untrained }) => untrained) ?? null;
}

// The chosen patch in a grid: [row, column].
export function patchIn(rows, columns) {
  return [Math.min(Math.floor(state.y * rows), rows - 1), Math.min(Math.floor(state.x * columns), columns - 1)];
}

export function choosePatch(row, column, rows, columns) {
  choose({ cls: false, y: (row + 0.5) / rows, x: (column + 0.5) / columns });
}

// The head of a model that is chosen, or its first.
export function headOf(model) {
  return state.head < headsOf(model) ? state.head : 0;
}

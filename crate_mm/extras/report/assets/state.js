// The selection: models A and B, image, layer, head and token. The URL holds the selection, so that a copied link opens
// the same view. Numbers are from 0 here and from 1 in the URL.

import { headsOf, mostHeads, mostLayers, report } from "./data.js";

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

const opening = openingModels();
export const state = {
  ...opening,
  image: openingImage(report.models[opening.a]),
  layer: report.models[opening.a].layers.length - 1,
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
export const ignored = []; // parts of the address that were not understood
readAddress();

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const whole = {
    image: report.images.length,
    layer: mostLayers,
    head: mostHeads,
    a: report.models.length,
    b: report.models.length,
    step: 8,
    dir: Infinity,
  };
  for (const [name, text] of given) {
    const value = Number(text);
    if (name in whole && Number.isInteger(value) && value >= (name === "b" ? 0 : 1) && value <= whole[name]) {
      if (name === "step") state.step = value;
      else if (name === "b") state.b = value ? value - 1 : null;
      else state[name === "dir" ? "direction" : name] = value - 1;
    } else if ((name === "y" || name === "x") && text !== "" && value >= 0 && value < 1) state[name] = value;
    else if (name === "token" && text === "cls") state.cls = true;
    else if (name === "measure" && Object.hasOwn(report.measures, text)) state.measure = text;
    else if (name === "lambda" && text !== "" && value >= 0 && value <= 10) state.lambda = value;
    else if (name === "off" && /^[hd]\d+\.\d+(-\d+)?(,[hd]\d+\.\d+(-\d+)?)*$/.test(text)) state.off = text;
    else if (name === "ink" && /^[\w.-]{1,1500}$/.test(text)) state.ink = text;
    else if (text !== "" || !(name in whole)) ignored.push(name);
  }
  if (state.b === state.a) state.b = opening.b === state.a ? null : opening.b;
}

export function address() {
  const parts = new URLSearchParams({ image: state.image + 1, layer: state.layer + 1, head: state.head + 1 });
  if (state.cls) parts.set("token", "cls");
  parts.set("y", state.y.toFixed(3));
  parts.set("x", state.x.toFixed(3));
  if (report.models.length > 1) {
    parts.set("a", state.a + 1);
    parts.set("b", state.b === null ? 0 : state.b + 1);
  }
  if (state.measure) parts.set("measure", state.measure);
  if (state.step < 8) parts.set("step", state.step);
  if (state.direction !== null) parts.set("dir", state.direction + 1);
  for (const name of ["lambda", "off", "ink"])
    if (state[name] !== null && state[name] !== "") parts.set(name, state[name]);
  return `#${parts}`;
}

export function choose(changes) {
  Object.assign(state, changes);
  const slides = Object.keys(changes).every((name) => replaced.has(name));
  try {
    history[slides ? "replaceState" : "pushState"](null, "", address());
  } catch {
    // A browser limits how often the address may change; the selection itself has changed.
  }
  for (const listener of listeners) listener(Object.keys(changes));
}

window.addEventListener("popstate", () => {
  readAddress();
  for (const listener of listeners) listener(Object.keys(state));
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

// The selection: models A and B, image, layer, head and token. The URL holds the selection, so that a copied link opens
// the same view. Numbers are from 0 here and from 1 in the URL.

import { headsOf, report } from "./data.js";

const listeners = [];
const replaced = new Set(["lambda", "layer", "step", "ink", "section"]); // what does not add to the history

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
  section: null, // that is looked at
  ...pairAtStart,
  image: openingImage(report.models[pairAtStart.a]),
  layer: report.models[pairAtStart.a].layers.length - 1,
  head: 0,
  cls: false, // whether the class token is chosen, else the patch at (y, x)
  y: 0.5, // of the chosen patch, as a share of the image's height
  x: 0.5,
  step: innerWidth > 640 ? 8 : 1, // of a layer, in the section "layer": the last, where all are shown, or the first of one at a time
  lambda: null, // of all layers, in the section "draw"; null: as trained
  off: "", // what is switched off there, such as "h2.1-3,d4.17"
  ink: "", // the drawing there
  measure: null,
  direction: null, // null: one that a class uses most
};
export const state = { ...opening };
export const ignored = []; // parts of the address that were not understood
export const INK_LETTERS = 1500; // of a drawing in the address; a longer one is left out
let given = new Map(); // what the address names

const within = (value, least, most) => (value >= least && value <= most ? value : undefined);
const whole = (text, most, least = 1) => (/^\d+$/.test(text) ? within(Number(text), least, most) : undefined);
const matching = (text, pattern) => (pattern.test(text) ? text : undefined);
const decimal = (text, most) => (text === "" ? undefined : within(Number(text), 0, most));
const fromOne = (number) => (number === undefined ? undefined : number - 1);

// The parts of an address: name, what of the selection it is, its value of a text (undefined if the text does not fit),
// and its text (null where it says nothing).
const PARTS = [
  ["s", "section", (text) => matching(text, /^(layer|draw|look|directions|objective|compare|subspaces|segments|run)$/)],
  ["a", "a", (text) => fromOne(whole(text, report.models.length)), (a) => a + 1],
  ["b", "b", (text) => (text === "0" ? null : fromOne(whole(text, report.models.length))), (b) => (b ?? -1) + 1],
  ["image", "image", (text) => fromOne(whole(text, report.images.length)), (image) => image + 1],
  ["layer", "layer", (text) => fromOne(whole(text, mostOf(depthOf))), (layer) => layer + 1],
  ["head", "head", (text) => fromOne(whole(text, mostOf(headsOf))), (head) => head + 1],
  ["token", "cls", (text) => text === "cls" || undefined, (cls) => (cls ? "cls" : null)],
  ["y", "y", (text) => decimal(text, 0.9999), (y) => y.toFixed(3)],
  ["x", "x", (text) => decimal(text, 0.9999), (x) => x.toFixed(3)],
  ["measure", "measure", (text) => (Object.hasOwn(report.measures, text) ? text : undefined)],
  ["step", "step", (text) => whole(text, 8), (step) => (step === opening.step ? null : step)],
  ["dir", "direction", (text) => fromOne(whole(text, 1e6)), (direction) => (direction === null ? null : direction + 1)],
  ["lambda", "lambda", (text) => decimal(text, 10)],
  ["off", "off", (text) => matching(text, /^[hd]\d+\.\d+(-\d+)?(,[hd]\d+\.\d+(-\d+)?)*$/), (off) => off || null],
  ["ink", "ink", (text) => matching(text, /^[\w.-]{1,1500}$/), (ink) => (ink.length <= INK_LETTERS && ink) || null],
];
readAddress();

// The numbers of layers and heads that can be chosen: the most of A and B.
export function mostOf(count) {
  return Math.max(...shownModels().map(({ model }) => count(model)));
}

export function depthOf(model) {
  return model.layers.length;
}

function readAddress() {
  given = new Map(new URLSearchParams(location.hash.slice(1)));
  if (!location.hash.includes("=")) given.clear(); // a link to a section
  ignored.length = 0;
  Object.assign(state, opening);
  for (const [name, key, read] of PARTS) {
    const value = given.has(name) ? read(given.get(name)) : opening[key];
    if (value === undefined) ignored.push(name);
    else state[key] = value;
    if (name === "b" && state.b === state.a) state.b = opening.b === state.a ? null : opening.b;
  }
  const names = PARTS.map(([name]) => name);
  ignored.push(...[...given.keys()].filter((name) => !names.includes(name)));
  fit();
}

// Where the page opens: a head, or a patch at (y, x), unless the address names one.
export function openAt(place) {
  Object.assign(opening, place);
  const names = "head" in place ? ["head"] : ["token", "y", "x"];
  if (!names.some((name) => given.has(name))) Object.assign(state, place);
}

// Keep the layer and the head within A and B.
function fit() {
  state.layer = Math.min(state.layer, mostOf(depthOf) - 1);
  state.head = Math.min(state.head, mostOf(headsOf) - 1);
}

export function address(changed = {}) {
  const now = { ...state, ...changed };
  const parts = new URLSearchParams();
  for (const [name, key, , write = (value) => value] of PARTS) {
    const text = write(now[key]);
    if (text !== null && (report.models.length > 1 || (name !== "a" && name !== "b"))) parts.set(name, text);
  }
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
  const middle = document.elementFromPoint(innerWidth / 2, innerHeight / 2);
  Object.assign(state, changes, { section: middle?.closest("main > section")?.id ?? null });
  fit();
  const changed = Object.keys(state).filter((name) => state[name] !== old[name]);
  tell([...Object.keys(changes), ...changed]);
  const add = changed.some((name) => !replaced.has(name));
  if (changed.length) setTimeout(() => writeAddress(add)); // after what is in the window is drawn
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

// The selection: image, layer and head (from 0), patch as a position in the image, measure, hidden models. The URL
// holds the selection, so that a copied link opens the same view.

import { mostHeads, mostLayers, report } from "./data.js";

const listeners = [];

export const state = {
  image: 0,
  layer: 0,
  head: 0,
  y: 0.5, // of the chosen patch, as a share of the image's height
  x: 0.5,
  measure: null,
  direction: 0,
  hidden: new Set(),
  ...fromAddress(),
};

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const found = {};
  const whole = { image: report.images.length, layer: mostLayers, head: mostHeads };
  for (const [name, most] of Object.entries(whole)) {
    const value = Number(given.get(name));
    if (given.has(name) && Number.isInteger(value) && value >= 1 && value <= most) found[name] = value - 1;
  }
  for (const name of ["y", "x"]) {
    const value = Number(given.get(name));
    if (given.has(name) && value >= 0 && value < 1) found[name] = value;
  }
  if (given.get("measure") in report.measures) found.measure = given.get("measure");
  return found;
}

export function choose(changes) {
  Object.assign(state, changes);
  const told = new URLSearchParams({ image: state.image + 1, layer: state.layer + 1, head: state.head + 1 });
  told.set("y", state.y.toFixed(3));
  told.set("x", state.x.toFixed(3));
  if (state.measure) told.set("measure", state.measure);
  history.replaceState(null, "", `#${told}`);
  for (const listener of listeners) listener(Object.keys(changes));
}

export function onChoice(listener) {
  listeners.push(listener);
}

export function shownModels() {
  return report.models.map((model, index) => ({ model, index })).filter(({ index }) => !state.hidden.has(index));
}

// The chosen patch in a grid: [row, column].
export function patchIn(rows, columns) {
  return [Math.min(Math.floor(state.y * rows), rows - 1), Math.min(Math.floor(state.x * columns), columns - 1)];
}

export function choosePatch(row, column, rows, columns) {
  choose({ y: (row + 0.5) / rows, x: (column + 0.5) / columns });
}

// What sections share of the models: their colors and styles, legend, boxes, and curves by layer.

import { report } from "./data.js";
import { div, h, nothing } from "./dom.js";
import { countOf } from "./numbers.js";
import { depthOf, mostOf, shownModels, state } from "./state.js";
import { lineChart } from "./svg.js";

// The color of a model: A, B, an untrained one, another one.
export function mark(index) {
  if (report.models[index].untrained) return "var(--untrained)";
  return index === state.a ? "var(--a)" : index === state.b ? "var(--b)" : "var(--other)";
}

// A model's mark: round, and square for B.
export function dot(index) {
  return h("span", { class: index === state.b ? "dot square" : "dot", style: { color: mark(index) } });
}

// A box of a model, with its mark and its label.
export function panelOf(model, index, ...children) {
  const box = { class: "model", "data-model": index, style: { "--mark": mark(index) } };
  return h("article", box, h("h3", {}, dot(index), model.label), children);
}

// In place of a view of a layer that a model does not define. The reason is said once, beside the model's name at the top.
export function lacking(model, what, otherwise = "") {
  if (!model.layers[state.layer]) return nothing(`${model.label} has ${countOf(model.layers.length, "layer")}.`);
  if (!Object.hasOwn(model.undefined, what)) return nothing(otherwise);
  return h("p", { class: "none" }, `Not defined for ${model.label}: see its line at the top.`);
}

// The color and the dashes of a model: an untrained one is dotted, B is dashed.
export function styleOf(index) {
  const dash = report.models[index].untrained ? "2 4" : index === state.b ? "7 4" : null;
  return { color: mark(index), dash, square: index === state.b, letter: index === state.a ? "A" : "B" };
}

// Legend of the chosen models: their letter, color and line.
export function legend() {
  const entries = shownModels().map(({ model, index }) =>
    h("span", {}, dot(index), h("b", {}, index === state.a ? "A" : "B"), ` ${model.label}`),
  );
  return h("p", { class: "legend" }, entries);
}

// A chart by layer of the chosen models, of `pointOf(layer)`: {y, low, high, title}, or null. Null without any point.
export function lineByLayer(name, pointOf, options) {
  const points = ({ layers }) =>
    layers.flatMap((layer, l) => (pointOf(layer) ? [{ x: l + 1, ...pointOf(layer) }] : []));
  const series = shownModels()
    .map(({ model, index }) => ({ name: model.label, style: styleOf(index), points: points(model) }))
    .filter((line) => line.points.length);
  if (!series.length) return null;
  const box = div("chart");
  const xs = Array.from({ length: mostOf(depthOf) }, (_, l) => l + 1);
  lineChart(box, { name, series, xs, xTitle: "layer", chosen: state.layer + 1, ...options });
  return box;
}

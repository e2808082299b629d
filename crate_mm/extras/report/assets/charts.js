// What the charts of the sections share: the styles of the models, their legend, and curves by layer.

import { report } from "./data.js";
import { div, dot, mark } from "./dom.js";
import { h } from "./element.js";
import { depthOf, mostOf, shownModels, state } from "./state.js";
import { lineChart } from "./svg.js";

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

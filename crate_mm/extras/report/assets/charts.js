// What the charts of the sections share: the styles of the models, their legend, and matrices.

import { report } from "./data.js";
import { h, mark, number } from "./dom.js";
import { heat } from "./heat.js";
import { shownModels, state } from "./state.js";

// The color and the dashes of a model: an untrained one is dotted, B is dashed.
export function styleOf(index) {
  const dash = report.models[index].untrained ? "2 4" : index === state.b ? "7 4" : null;
  return { color: mark(index), dash };
}

// Histograms of models in bins of one common width, the widest: all widths are powers of two, or 0 for one value.
export function inBins(found) {
  const widest = Math.max(...found.map(({ histogram }) => histogram.width));
  const width = widest || Math.max(Math.abs(found[0].histogram.start) * 1e-3, 1e-6);
  return found.map(({ model, histogram, count }) => {
    const bins = new Map();
    histogram.counts.forEach((n, i) => {
      const bin = Math.floor((histogram.start + (i + 0.5) * histogram.width) / width);
      bins.set(bin, (bins.get(bin) ?? 0) + n);
    });
    const bars = [...bins].map(([bin, n]) => ({
      from: bin * width,
      to: (bin + 1) * width,
      y: n / count,
      title: `${number(bin * width)} to ${number((bin + 1) * width)}: ${n} images`,
    }));
    return { style: styleOf(model), bars };
  });
}

// A matrix with the names of its rows and columns. The scale is from 0 to `most`.
export function matrix({ key, name, caption, rows, columns, values, most }) {
  const figure = heat({
    key,
    name,
    rows: rows.length,
    columns: columns.length,
    values: Float64Array.from(values, (value) => value / (most || 1)),
    tell: (i) => `${rows[Math.floor(i / columns.length)]}, ${columns[i % columns.length]}: ${number(values[i])}`,
    caption,
  });
  figure.querySelector("canvas").numbers = values;
  const label = (text) => h("span", {}, text);
  return h(
    "div",
    { class: "matrix" },
    figure,
    h(
      "p",
      { class: "note" },
      "rows: ",
      rows.map(label).flatMap((e) => [e, " "]),
      h("br"),
      "columns: ",
      columns.map(label).flatMap((e) => [e, " "]),
    ),
  );
}

// Legend of the chosen models.
export function legend() {
  const models = shownModels();
  if (models.length < 2)
    return h(
      "p",
      { class: "hidden" },
      models.map(({ model }) => model.label),
    );
  return h(
    "p",
    { class: "legend" },
    models.map(({ model, index }) =>
      h("span", {}, h("span", { class: "dot", style: { color: mark(index) } }), model.label),
    ),
  );
}

export function modelLayers() {
  return Math.max(...shownModels().map(({ model }) => model.layers.length), 1);
}

export const measureNames = Object.keys(report.measures).filter((name) =>
  report.models.some((m) => m.layers.some((l) => name in l.measures)),
);

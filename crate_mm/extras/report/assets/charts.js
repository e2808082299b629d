// What the charts of the sections share: the styles of the models, their legend, and matrices.

import { report } from "./data.js";
import { dot, mark } from "./dom.js";
import { h } from "./element.js";
import { countOf, number } from "./numbers.js";
import { shownModels, state } from "./state.js";

// The color and the dashes of a model: an untrained one is dotted, B is dashed.
export function styleOf(index) {
  const dash = report.models[index].untrained ? "2 4" : index === state.b ? "7 4" : null;
  return { color: mark(index), dash, square: index === state.b, letter: index === state.a ? "A" : "B" };
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
      title: `${number(bin * width)} to ${number((bin + 1) * width)}: ${countOf(n, "image")}`,
    }));
    return { style: styleOf(model), bars };
  });
}

// Legend of the chosen models: their letter, color and line.
export function legend() {
  return h(
    "p",
    { class: "legend" },
    shownModels().map(({ model, index }) =>
      h("span", {}, dot(index), h("b", {}, index === state.a ? "A" : "B"), ` ${model.label}`),
    ),
  );
}

export function modelLayers() {
  return Math.max(...shownModels().map(({ model }) => model.layers.length), 1);
}

export const measureNames = Object.keys(report.measures).filter((name) =>
  report.models.some((m) => m.layers.some((l) => name in l.measures)),
);

// The objective by layer: a chart and its sentences for each measure, and the chosen one's formula, spread and numbers.

import { legend, lineByLayer, styleOf } from "./charts.js";
import { report } from "./data.js";
import { button, div, fold, h, note, says, unfold } from "./dom.js";
import { countOf, number, percent, short } from "./numbers.js";
import { measureSentences } from "./sentences.js";
import { choose, shownModels, state, untrainedModel } from "./state.js";
import { barChart } from "./svg.js";

const ORDER = ["rc_half", "sparsity", "objective", "r_out"];
const INNER = ["rc_z", "rc_in", "rc_out", "snr_out", "sparsity_step1", "active"]; // shown below the others, on request
const TITLES = {
  __proto__: null, // a user's measure may be called "constructor"
  rc_z: "Rᶜ before compression, same projection",
  r_out: "R, the rate of all tokens",
  rc_half: "Rᶜ after compression",
  sparsity: "Nonzero entries of the code",
  sparsity_step1: "Nonzero entries after one step",
  objective: "Objective, R − Rᶜ − λ‖Z‖₀",
  rc_in: "Rᶜ of the normalized tokens, before compression",
  rc_out: "Rᶜ of the layer's output",
  active: "Positive activations of the MLP",
  snr_out: "Length within a head's subspace over that outside",
};
const titleOf = (name) => TITLES[name] ?? name;

// The measures that a model on the page defines: those of the objective, a user's, and the inner ones.
function measureNames() {
  const names = Object.keys(report.measures).filter((name) =>
    report.models.some((model) => model.layers.some(({ measures }) => name in measures)),
  );
  const rest = names.filter((name) => !ORDER.includes(name) && !INNER.includes(name));
  return [...ORDER, ...rest, ...INNER].filter((name) => names.includes(name));
}

export async function renderObjective(body) {
  const names = measureNames();
  if (!names.includes(state.measure)) state.measure = names.includes("rc_half") ? "rc_half" : names[0];
  const inner = names.filter((name) => INNER.includes(name));
  const outer = names.filter((name) => !INNER.includes(name));
  const lacks = shownModels().flatMap(({ model }) => {
    const without = outer.filter((name) => ORDER.includes(name) && !model.layers.some((l) => name in l.measures));
    const list = without.map(titleOf).join("; ");
    return list ? [note(`Not defined for ${model.label}: ${list}.`, "lacking")] : [];
  });
  const title = h("h3", {}, `${titleOf(state.measure)}: layer ${state.layer + 1}`);
  body.replaceChildren(
    legend(),
    ...lacks,
    h("div", { class: "swipe four measures", "data-scroll": "measures" }, outer.map(panel)),
    inner.length ? fold("inner", "Other measures", div("four measures", inner.map(panel))) : "",
    fold("detail", [title, " formula, spread over the images, numbers of all layers"], detail()),
  );
}

// A measure: its chart, and what its numbers say.
function panel(name) {
  const pick = (layer) => choose({ layer: layer - 1, measure: name });
  const bounds = report.models[state.a].bounds?.[name] ?? [];
  const point = ({ measures }) => {
    if (!measures[name]) return null;
    const { mean, std } = measures[name];
    return { y: mean, low: mean - (std ?? 0), high: mean + (std ?? 0), title: `${number(mean)} ± ${number(std)}` };
  };
  const chart = lineByLayer(`${titleOf(name)}, by layer`, point, {
    bounds: bounds.map((y, i) => ({ y, name: i ? "ceiling" : "floor" })),
    yFormat: name.startsWith("sparsity") || name === "active" ? percent : short,
    pick,
  });
  chart?.setAttribute("data-chart", name);
  const models = shownModels().map(({ model }) => model);
  const trained = models.filter((model, i) => i === 0 || !model.untrained);
  const open = () => (unfold("detail"), choose({ measure: name }));
  return div(
    "measure",
    button(`measure-${name}`, titleOf(name), open, name === state.measure, { "data-measure": name }),
    chart,
    says(`says-${name}`, measureSentences(name, trained, untrainedModel()).join(" ")),
  );
}

// The chosen measure: its formula, how it spreads over the images in the chosen layer, and its numbers in all.
function detail() {
  const name = state.measure;
  const template = document.getElementById(`equation-${name}`);
  const models = shownModels().filter(({ model }) => model.layers[state.layer]?.measures[name]);
  const entries = models.map(({ model, index }) => ({ ...model.layers[state.layer].measures[name], model, index }));
  const words = ({ model, mean, std, count }) =>
    note(`${model.label}: mean ${number(mean)}, deviation ${number(std)}, ${countOf(count, "image")}`, "measure");
  const plot = div("chart");
  if (entries.length)
    barChart(plot, {
      name: `Distribution over the images, layer ${state.layer + 1}`,
      groups: inBins(entries),
      xTitle: "value of an image",
      xFormat: short,
      yFormat: percent,
    });
  return div(
    "panel",
    div("equation", template ? template.content.cloneNode(true) : note(report.measures[name])),
    entries.length
      ? [plot, entries.map(words)]
      : h("p", { class: "none" }, "Not defined in this layer for the models shown."),
    div("scroll numbers", table(name)),
  );
}

// Histograms of models in bins of one common width, the widest: all widths are powers of two, or 0 for one value.
function inBins(entries) {
  const widest = Math.max(...entries.map(({ histogram }) => histogram.width));
  const width = widest || Math.max(Math.abs(entries[0].histogram.start) * 1e-3, 1e-6);
  return entries.map(({ index, histogram, count }) => {
    const bins = new Map();
    histogram.counts.forEach((n, i) => {
      const bin = Math.floor((histogram.start + (i + 0.5) * histogram.width) / width);
      bins.set(bin, (bins.get(bin) ?? 0) + n);
    });
    const bars = [...bins].map(([bin, n]) => {
      const [from, to] = [bin * width, (bin + 1) * width];
      return { from, to, y: n / count, title: `${number(from)} to ${number(to)}: ${countOf(n, "image")}` };
    });
    return { style: styleOf(index), bars };
  });
}

function table(name) {
  const models = shownModels().filter(({ model }) => model.layers.some(({ measures }) => measures[name]));
  const cell = (model, l) => {
    const entry = model.layers[l]?.measures[name];
    return h("td", {}, entry ? `${number(entry.mean)} ± ${number(entry.std)}` : "–");
  };
  const depth = Math.max(...models.map(({ model }) => model.layers.length));
  const rows = Array.from({ length: depth }, (_, l) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, l + 1),
      models.map(({ model }) => cell(model, l)),
    ),
  );
  const head = ["layer", ...models.map(({ model }) => model.label)].map((text) => h("th", { scope: "col" }, text));
  const caption = h("caption", {}, `${titleOf(name)}: mean and standard deviation`);
  return h("table", {}, caption, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows));
}

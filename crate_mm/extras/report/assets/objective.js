// The objective by layer: one curve per model, and the chosen layer's distribution and extreme images.

import { inBins, legend, measureNames, modelLayers, styleOf } from "./charts.js";
import { report } from "./data.js";
import { panelOf } from "./dom.js";
import { h } from "./element.js";
import { countOf, number, percent, short } from "./numbers.js";
import { measureSentences } from "./sentences.js";
import { choose, shownModels, state, untrainedModel } from "./state.js";
import { barChart, lineChart } from "./svg.js";

export const objectiveNeeds = ["layer", "measure", "a", "b"];

let spreadOpen = false; // the spread of the chosen measure
const ORDER = ["rc_half", "sparsity", "objective", "r_out"];
const INNER = ["rc_z", "rc_in", "rc_out", "sparsity_step1", "active"]; // shown below the others, on request
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
};
function sorted() {
  const rank = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : INNER.includes(name) ? 200 : 100);
  return [...measureNames].sort((a, b) => rank(a) - rank(b));
}

export async function renderObjective(body) {
  const names = sorted();
  if (!names.includes(state.measure)) state.measure = names.includes("rc_half") ? "rc_half" : names[0];
  overview(body, names);
  for (const button of body.querySelectorAll(".measure > button")) {
    button.setAttribute("aria-pressed", button.dataset.measure === state.measure);
  }
  detail(...body.querySelector(".detail").children);
  table(body.querySelector(".numbers"));
}

function overview(body, names) {
  const shown = names.filter((name) => !INNER.includes(name)).length || names.length;
  const panels = names.map((name) => {
    const head = h(
      "button",
      {
        type: "button",
        "data-measure": name,
        "data-key": `measure-${name}`,
        onclick: () => {
          spreadOpen = true;
          choose({ measure: name });
        },
      },
      TITLES[name] ?? name,
    );
    return h(
      "div",
      { class: "measure" },
      head,
      h("div", { class: "chart", "data-chart": name }),
      h(
        "p",
        { class: "says", "data-told": `says-${name}` },
        measureSentences(
          name,
          shownModels()
            .map(({ model }) => model)
            .filter((model, i) => i === 0 || !model.untrained),
          untrainedModel(),
        ).join(" "),
      ),
    );
  });
  const lacking = shownModels().flatMap(({ model }) => {
    const without = names.filter(
      (name) => ORDER.includes(name) && model.layers.every((layer) => !(name in layer.measures)),
    );
    const list = without.map((name) => TITLES[name] ?? name).join("; ");
    return list ? [h("p", { class: "note", "data-told": "lacking" }, `Not defined for ${model.label}: ${list}.`)] : [];
  });
  const details = h(
    "details",
    { class: "detail", open: spreadOpen, ontoggle: () => (spreadOpen = details.open) },
    h("summary", {}),
    h("div", {}),
  );
  body.replaceChildren(
    ...[
      legend(),
      ...lacking,
      h("div", { class: "swipe four measures", "data-scroll": "measures" }, panels.slice(0, shown)),
      panels.length > shown
        ? h(
            "details",
            {},
            h("summary", {}, "Other measures"),
            h("div", { class: "four measures" }, panels.slice(shown)),
          )
        : null,
      details,
      h("details", {}, h("summary", {}, "These numbers as a table"), h("div", { class: "scroll numbers" })),
    ].filter(Boolean),
  );
  for (const [i, name] of names.entries()) {
    const series = shownModels()
      .map(({ model, index }) => ({ name: model.label, style: styleOf(index), points: pointsOf(model, name) }))
      .filter(({ points }) => points.length);
    if (!series.length) continue;
    lineChart(panels[i].querySelector(".chart"), {
      name: `${TITLES[name] ?? name}, by layer`,
      series,
      bounds: boundsOfMeasure(name),
      xs: Array.from({ length: modelLayers() }, (_, l) => l + 1),
      xTitle: "layer",
      yFormat: name.startsWith("sparsity") || name === "active" ? percent : short,
      chosen: state.layer + 1,
      pick: (layer) => choose({ layer: layer - 1, measure: name }),
    });
  }
}

// Floor and ceiling of a rate, where the data has them.
function boundsOfMeasure(name) {
  const bounds = report.models[state.a].bounds?.[name];
  return bounds
    ? [
        { y: bounds[0], name: "floor" },
        { y: bounds[1], name: "ceiling" },
      ]
    : [];
}

function pointsOf(model, name) {
  return model.layers.flatMap((layer, l) => {
    const found = layer.measures[name];
    if (!found) return [];
    const { mean, std } = { ...found, std: found.std ?? 0 };
    const title = `layer ${l + 1}: mean ${number(mean)}, deviation ${number(std)}`;
    return [{ x: l + 1, y: mean, low: mean - std, high: mean + std, title }];
  });
}

function rowsOf(name) {
  return shownModels().flatMap(({ model, index }) =>
    model.layers.flatMap((layer, l) => {
      const found = layer.measures[name];
      if (!found) return [];
      const { mean, std } = { ...found, std: found.std ?? 0 };
      return [{ model: index, name: model.label, layer: l + 1, mean, std, low: mean - std, high: mean + std }];
    }),
  );
}

function detail(summary, box) {
  const name = state.measure;
  const models = shownModels().filter(({ model }) => model.layers[state.layer]?.measures[name]);
  const template = document.getElementById(`equation-${name}`);
  const equation = template ? template.content.cloneNode(true) : h("p", { class: "note" }, report.measures[name]);
  const plot = h("div", { class: "chart" });
  summary.replaceChildren(
    h("h3", {}, `${TITLES[name] ?? name}: layer ${state.layer + 1}`),
    " formula, spread over the images, lowest and highest",
  );
  box.replaceChildren(
    h("div", { class: "equation" }, equation),
    models.length ? plot : h("p", { class: "none" }, "Not defined in this layer for the models shown."),
    h(
      "div",
      { class: "halves" },
      models.map((shown) => ends(shown, name)),
    ),
  );
  if (!models.length) return;
  const found = models.map(({ model, index }) => ({ ...model.layers[state.layer].measures[name], model: index }));
  barChart(plot, {
    name: `Distribution over the images, layer ${state.layer + 1}`,
    groups: inBins(found),
    xTitle: "value of an image",
    xFormat: short,
    yFormat: percent,
  });
}

function ends({ model, index }, name) {
  const found = model.layers[state.layer].measures[name];
  const list = (title, samples) =>
    h(
      "div",
      {},
      h("h4", {}, title),
      h(
        "ul",
        { class: "end" },
        samples.map(([position, value]) => h("li", {}, thumbnail(position), number(value))),
      ),
    );
  return panelOf(
    model,
    index,
    h(
      "p",
      { class: "note", "data-told": "measure" },
      `mean ${number(found.mean)}, deviation ${number(found.std)}, ${countOf(found.count, "image")}`,
    ),
    h("div", { class: "ends" }, list("Lowest", found.low), list("Highest", found.high)),
  );
}

export function thumbnail(position) {
  const image = h("img", { src: report.thumbnails[position], alt: `image ${position} of the data`, loading: "lazy" });
  return h("span", { class: "thumb" }, image);
}

function table(box) {
  const rows = rowsOf(state.measure);
  const models = shownModels().filter(({ index }) => rows.some((row) => row.model === index));
  const most = modelLayers();
  const cell = (model, layer) => {
    const row = rows.find((r) => r.model === model && r.layer === layer);
    return h("td", {}, row ? `${number(row.mean)} ± ${number(row.std)}` : "–");
  };
  box.replaceChildren(
    h(
      "table",
      {},
      h("caption", {}, `${TITLES[state.measure] ?? state.measure}: mean and standard deviation`),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "layer"),
          models.map(({ model }) => h("th", { scope: "col" }, model.label)),
        ),
      ),
      h(
        "tbody",
        {},
        Array.from({ length: most }, (_, i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, i + 1),
            models.map(({ index }) => cell(index, i + 1)),
          ),
        ),
      ),
    ),
  );
}

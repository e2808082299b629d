// The objective by layer: one curve per model, and the chosen layer's distribution and extreme images.

import { chart, curves, histograms, inBins, legend, measureNames, modelLayers } from "./charts.js";
import { report } from "./data.js";
import { h, heading, mark, number } from "./dom.js";
import { choose, shownModels, state } from "./state.js";

export const objectiveNeeds = ["layer", "measure", "a", "b"];

const ORDER = ["r_out", "rc_half", "sparsity", "objective"];
const TITLES = {
  __proto__: null, // a user's measure may be called "constructor"
  r_out: "R, the rate of all tokens",
  rc_half: "Rᶜ after compression",
  sparsity: "Nonzero entries of the code",
  sparsity_step1: "Nonzero entries after one step",
  objective: "Objective, R − Rᶜ − λ‖Z‖₀",
  rc_in: "Rᶜ before compression",
  rc_out: "Rᶜ of the layer's output",
  active: "Positive activations of the MLP",
};
let views = new Map(); // the charts of the measures, for which the rule is moved without a redraw
let viewsOf = "";

function sorted() {
  return [
    ...ORDER.filter((name) => measureNames.includes(name)),
    ...measureNames.filter((name) => !ORDER.includes(name)),
  ];
}

export async function renderObjective(body) {
  const names = sorted();
  if (!names.includes(state.measure)) state.measure = names.includes("rc_half") ? "rc_half" : names[0];
  const drawn = `${state.a} ${state.b}`;
  if (!body.querySelector(".detail") || viewsOf !== drawn) await overview(body, names, drawn);
  for (const button of body.querySelectorAll(".measure > button")) {
    button.setAttribute("aria-pressed", button.dataset.measure === state.measure);
  }
  for (const view of views.values()) await view.signal("layer", state.layer + 1).runAsync();
  await detail(body.querySelector(".detail"));
  await table(body.querySelector(".numbers"));
}

async function overview(body, names, drawn) {
  const panels = names.map((name) => {
    const head = h(
      "button",
      {
        type: "button",
        "data-measure": name,
        "data-key": `measure-${name}`,
        onclick: () => choose({ measure: name }),
      },
      TITLES[name] ?? name,
    );
    return h(
      "div",
      { class: "measure" },
      head,
      h("div", { class: "chart", "data-chart": name }),
      h("div", { class: "lacking" }),
    );
  });
  body.replaceChildren(
    legend(),
    h("div", { class: "row measures" }, panels),
    h("div", { class: "detail" }),
    h("details", {}, h("summary", {}, "These numbers as a table"), h("div", { class: "scroll numbers" })),
  );
  viewsOf = drawn;
  views = new Map();
  for (const [i, name] of names.entries()) {
    const rows = rowsOf(name);
    const without = shownModels().filter(({ model }) => model.layers.every((layer) => !(name in layer.measures)));
    if (without.length)
      panels[i].lastChild.append(
        h("p", { class: "note" }, `Not defined for ${without.map(({ model }) => model.label).join(", ")}.`),
      );
    if (!rows.length) continue;
    const told = `${TITLES[name] ?? name}, by layer`;
    const view = await chart(
      panels[i].querySelector(".chart"),
      curves(rows, { most: modelLayers(), layer: state.layer + 1 }),
      told,
    );
    view.addEventListener("click", (_event, item) => {
      if (item?.datum?.layer) choose({ layer: item.datum.layer - 1, measure: name });
    });
    views.set(name, view);
  }
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

async function detail(box) {
  const name = state.measure;
  const models = shownModels().filter(({ model }) => model.layers[state.layer]?.measures[name]);
  const template = document.getElementById(`equation-${name}`);
  const equation = template ? template.content.cloneNode(true) : h("p", { class: "note" }, report.measures[name]);
  const plot = h("div", { class: "chart" });
  box.replaceChildren(
    h("h3", {}, `${TITLES[name] ?? name}: layer ${state.layer + 1}`),
    h("div", { class: "equation" }, equation),
    models.length ? plot : h("p", { class: "none" }, "Not defined in this layer for the models shown."),
    h(
      "div",
      { class: "row two" },
      models.map((shown) => ends(shown, name)),
    ),
  );
  if (!models.length) return;
  const found = models.map(({ model, index }) => ({
    ...model.layers[state.layer].measures[name],
    model: index,
    name: model.label,
  }));
  await chart(plot, histograms(inBins(found)), `Distribution over the images, layer ${state.layer + 1}`);
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
  return h(
    "div",
    { class: "model", style: { "--mark": mark(index) } },
    heading(model, index),
    h(
      "p",
      { class: "note", "data-told": "measure" },
      `mean ${number(found.mean)}, deviation ${number(found.std)}, ${found.count} images`,
    ),
    h("div", { class: "ends" }, list("Lowest", found.low), list("Highest", found.high)),
  );
}

export function thumbnail(position) {
  const image = h("img", { src: report.thumbnails[position], alt: `image ${position} of the data`, loading: "lazy" });
  return h("span", { class: "thumb" }, image);
}

async function table(box) {
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

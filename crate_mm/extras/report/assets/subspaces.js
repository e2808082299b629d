// The subspaces: similarity between heads, and the energy of classes in them.

import { legend, matrix, modelLayers, styleOf } from "./charts.js";
import { className, report, unpack } from "./data.js";
import { h, heading, mark, nothing, number } from "./dom.js";
import { heat, shares } from "./heat.js";
import { subspacesSentence } from "./sentences.js";
import { shownModels, state } from "./state.js";
import { lineChart } from "./svg.js";

export const subspacesNeeds = ["layer", "a", "b"];

export async function renderSubspaces(body) {
  const series = shownModels()
    .map(({ model, index }) => ({
      name: model.label,
      style: styleOf(index),
      points: model.layers.flatMap(({ subspaces }, l) =>
        subspaces && subspaces.incoherence !== null ? [{ x: l + 1, y: subspaces.incoherence }] : [],
      ),
    }))
    .filter(({ points }) => points.length);
  const plot = h("div", { class: "chart" });
  const head = series.length
    ? [
        h("h4", {}, "Mean |cosine| between basis vectors of different heads"),
        legend(),
        plot,
        h("p", { class: "note" }, "Random: mean for random vectors, about √(2/πd)."),
      ]
    : [];
  const panels = [];
  for (const shown of shownModels()) panels.push(await subspacePanel(shown));
  body.replaceChildren(h("div", { class: "narrow" }, head), h("div", { class: "pair" }, panels));
  if (!series.length) return;
  const random = report.models[state.a].layers.find(({ subspaces }) => subspaces)?.subspaces.random;
  lineChart(plot, {
    name: "Incoherence of the subspaces by layer",
    series,
    bounds: random ? [{ y: random, name: "random" }] : [],
    xs: Array.from({ length: modelLayers() }, (_, l) => l + 1),
    xTitle: "layer",
    yFormat: number,
    chosen: state.layer + 1,
  });
}

async function subspacePanel({ model, index }) {
  const box = h("article", { class: "model", "data-model": index, style: { "--mark": mark(index) } });
  box.append(heading(model, index));
  const found = model.layers[state.layer]?.subspaces;
  if (!found) {
    box.append(
      nothing(
        model.layers[state.layer]
          ? (model.undefined.subspaces ?? "This layer has no subspaces.")
          : `This model has ${model.layers.length} layers.`,
      ),
    );
    return box;
  }
  const gram = await unpack(found.gram);
  const side = found.gram.shape[0];
  const each = side / found.heads;
  const who = (i) => `head ${Math.floor(i / each) + 1}, basis vector ${(i % each) + 1}`;
  const picture = heat({
    key: `gram-${index}`,
    name: `${model.label}: absolute cosines between basis vectors of the subspaces, layer ${state.layer + 1}`,
    rows: side,
    columns: side,
    values: gram,
    tell: (i) => `${who(Math.floor(i / side))} and ${who(i % side)}: ${number(gram[i])}`,
    caption: `Gram matrix: |cosines| of ${each} of ${found.directions_a_head} basis vectors per head, evenly spaced`,
  });
  const between = await unpack(found.between_heads);
  const K = found.heads;
  const heads = heat({
    key: `between-${index}`,
    name: `${model.label}: mean absolute cosines between heads`,
    rows: K,
    columns: K,
    values: shares(between),
    tell: (i) => `heads ${Math.floor(i / K) + 1} and ${(i % K) + 1}: ${number(between[i])}`,
    caption:
      found.incoherence === null
        ? "Only one head: no comparison"
        : `Means by pair of heads: ${number(found.incoherence)} between different heads, maximum ${number(Math.max(...between))}`,
  });
  const views = h("div", { class: "row three" }, picture, heads);
  const sentence = subspacesSentence(model.label, found.incoherence, found.random);
  box.append(h("p", { class: "sentence", "data-told": "subspaces" }, sentence), views);
  if (!found.energy) {
    views.append(nothing(model.undefined.labels ?? ""));
    return box;
  }
  const energy = await unpack(found.energy);
  const rows = model.classes.map((label) => className(label));
  const columns = Array.from({ length: K }, (_, k) => `head ${k + 1}`);
  const [least, most] = [Math.min(...energy), Math.max(...energy)];
  const caption = "Energy of each class in each head's subspace";
  const name = `${model.label}: ${caption}`;
  views.append(
    h(
      "div",
      { class: "panel" },
      matrix({ key: `energy-${index}`, name, caption, rows, columns, values: energy, most }),
      h("p", {}, `Fractions from ${number(least)} to ${number(most)}; equal heads would each have ${number(1 / K)}.`),
    ),
  );
  return box;
}

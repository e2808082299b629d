// The subspaces: similarity between heads, and the energy of classes in them.

import { legend, modelLayers, styleOf } from "./charts.js";
import { className, unpack } from "./data.js";
import { lacking, nothing, panelOf } from "./dom.js";
import { h } from "./element.js";
import { matrix } from "./heat.js";
import { countOf, number, short } from "./numbers.js";
import { subspacesSentence } from "./sentences.js";
import { shownModels, state } from "./state.js";
import { lineChart } from "./svg.js";

export const subspacesNeeds = ["layer", "a", "b"];

let gramOpen = false; // the Gram matrices

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
  const title = "Mean |cosine| between basis vectors of different heads";
  const note = "The dotted line is the mean for random vectors, about √(2/πd).";
  const head = series.length ? [h("div", {}, h("h4", {}, title), legend(), plot, h("p", { class: "note" }, note))] : [];
  const panels = [];
  for (const { model, index } of shownModels())
    panels.push(panelOf(model, index, ...(await subspaceViews(model, index))));
  body.replaceChildren(h("div", { class: "swipe three", "data-scroll": "subspaces" }, head, panels));
  if (!series.length) return;
  const random = shownModels()
    .flatMap(({ model }) => model.layers)
    .find(({ subspaces }) => subspaces)?.subspaces.random;
  lineChart(plot, {
    name: "Incoherence of the subspaces by layer",
    series,
    bounds: random ? [{ y: random, name: "random vectors" }] : [],
    xs: Array.from({ length: modelLayers() }, (_, l) => l + 1),
    xTitle: "layer",
    yFormat: short,
    from: 0,
    chosen: state.layer + 1,
  });
}

async function subspaceViews(model, index) {
  const found = model.layers[state.layer]?.subspaces;
  if (!model.layers[state.layer]) return [nothing(`This model has ${countOf(model.layers.length, "layer")}.`)];
  if (!found) return [lacking(model, "subspaces", "This layer has no subspaces.")];
  const [gram, between] = [await unpack(found.gram), await unpack(found.between_heads)];
  const heads = Array.from({ length: found.heads }, (_, k) => `head ${k + 1}`);
  const each = found.gram.shape[0] / found.heads;
  const vectors = heads.flatMap((name) => Array.from({ length: each }, (_, i) => `${name}, basis vector ${i + 1}`));
  const ends = `${short(Math.min(...between))} to ${short(Math.max(...between))}`;
  const means = matrix({
    key: `between-${index}`,
    name: `${model.label}: mean absolute cosines between heads`,
    rows: heads,
    columns: heads,
    values: between,
    caption:
      found.incoherence === null
        ? "Only one head: no comparison"
        : `Means by pair of heads, ${ends}; ${number(found.incoherence)} between different ones`,
  });
  const picture = matrix({
    key: `gram-${index}`,
    name: `${model.label}: absolute cosines between basis vectors of the subspaces, layer ${state.layer + 1}`,
    rows: vectors,
    columns: vectors,
    values: gram,
    caption: `|cosines| of ${each} of ${found.directions_a_head} basis vectors per head, evenly spaced, from 0 (dark) to 1`,
  });
  const details = h(
    "details",
    { open: gramOpen, ontoggle: () => (gramOpen = details.open) },
    h("summary", {}, "Gram matrix"),
    picture,
  );
  const sentence = subspacesSentence(model.label, found.incoherence, found.random);
  return [
    h("p", { class: "says", "data-told": "subspaces" }, sentence),
    h("div", { class: "twins" }, means, await energies(model, index, found, heads)),
    details,
  ];
}

async function energies(model, index, found, heads) {
  if (!found.energy) return lacking(model, "labels");
  const energy = await unpack(found.energy);
  const caption = "Energy of each class in each head's subspace";
  const classes = model.classes.map((label) => className(label));
  const [least, most] = [Math.min(...energy), Math.max(...energy)];
  const figure = matrix({
    key: `energy-${index}`,
    name: `${model.label}: ${caption}`,
    caption: `${caption}, ${short(least)} to ${short(most)}; equal heads would have ${short(1 / found.heads)}`,
    rows: heads,
    columns: classes,
    values: Float64Array.from({ length: energy.length }, (_, i) => {
      const [k, c] = [Math.floor(i / classes.length), i % classes.length];
      return energy[c * heads.length + k];
    }),
    most: Math.max(most, Math.min(2 / found.heads, 1)),
  });
  const names = classes.flatMap((name) => [h("span", {}, name), " "]);
  figure.append(h("p", { class: "note", "data-told": "names" }, "rows: heads; columns: ", names));
  return figure;
}

// The subspaces: how alike the heads' directions are, beside random ones.

import { unpack } from "./data.js";
import { lacking, legend, lineByLayer, panelOf } from "./charts.js";
import { div, fold, h, note, says } from "./dom.js";
import { matrix } from "./heat.js";
import { short } from "./numbers.js";
import { subspacesSentence } from "./sentences.js";
import { shownModels, state } from "./state.js";

export async function renderSubspaces(body) {
  const of = ({ subspaces }) => (subspaces?.incoherence == null ? null : { y: subspaces.incoherence });
  const random = shownModels()
    .flatMap(({ model }) => model.layers)
    .find(({ subspaces }) => subspaces)?.subspaces.random;
  const chart = lineByLayer("Incoherence of the subspaces by layer", of, {
    bounds: [{ y: random, name: "random vectors" }],
    yFormat: short,
    from: 0,
  });
  const title = "Mean |cosine| between basis vectors of different heads";
  const dotted = "The dotted line is the mean for random vectors, about √(2/πd).";
  const panels = chart ? [div(null, h("h4", {}, title), legend(), chart, note(dotted))] : [];
  for (const { model, index } of shownModels()) panels.push(panelOf(model, index, await views(model, index)));
  body.replaceChildren(h("div", { class: "swipe three", "data-scroll": "subspaces" }, panels));
}

async function views(model, index) {
  const data = model.layers[state.layer]?.subspaces;
  if (!data) return lacking(model, "subspaces", "This layer has no subspaces.");
  const { heads, incoherence } = data;
  const [gram, between] = [await unpack(data.gram), await unpack(data.between_heads)];
  const names = Array.from({ length: heads }, (_, k) => `head ${k + 1}`);
  const each = data.gram.shape[0] / heads;
  const vectors = names.flatMap((name) => Array.from({ length: each }, (_, i) => `${name}, basis vector ${i + 1}`));
  const ends = `${short(Math.min(...between))} to ${short(Math.max(...between))}`;
  const means = `Mean |cosine| by pair of heads, dark 0, bright 1: ${ends}. The diagonal compares a head with itself.`;
  const cosines = `${model.label}: absolute cosines between basis vectors of the subspaces, layer ${state.layer + 1}`;
  const evenly = `|cosines| of ${each} of ${data.directions_a_head} basis vectors per head, evenly spaced, from 0 (dark) to 1`;
  const pairs = `${model.label}: mean absolute cosines between heads`;
  return [
    says("subspaces", subspacesSentence(model.label, incoherence, data.random)),
    heads > 1 ? matrix(`between-${index}`, pairs, means, names, between) : "",
    fold(`gram-${index}`, "Gram matrix", matrix(`gram-${index}`, cosines, evenly, vectors, gram)),
  ];
}

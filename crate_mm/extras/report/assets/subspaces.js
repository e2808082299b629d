// The subspaces: similarity between heads, and the energy of classes in them.

import { chart, curves, legend, matrix, modelLayers } from "./charts.js";
import { className, unpack } from "./data.js";
import { h, heading, mark, nothing, number } from "./dom.js";
import { heat, shares } from "./heat.js";
import { shownModels, state } from "./state.js";

export const subspacesNeeds = ["layer", "a", "b"];

export async function renderSubspaces(body) {
  const rows = shownModels().flatMap(({ model, index }) =>
    model.layers.flatMap(({ subspaces }, l) =>
      subspaces && subspaces.incoherence !== null
        ? [
            {
              model: index,
              name: model.label,
              layer: l + 1,
              mean: subspaces.incoherence,
              low: subspaces.incoherence,
              high: subspaces.incoherence,
              random: subspaces.random,
              std: 0,
            },
          ]
        : [],
    ),
  );
  const plot = h("div", { class: "chart" });
  const head = rows.length
    ? [
        h("h4", {}, "Mean |cosine| between basis vectors of different heads"),
        legend(),
        plot,
        h("p", { class: "note" }, "Dashed: mean for random vectors, about √(2/πd)."),
      ]
    : [];
  const panels = [];
  const later = [];
  for (const shown of shownModels()) panels.push(await subspacePanel(shown, later));
  body.replaceChildren(h("div", { class: "narrow" }, head), ...panels);
  if (rows.length)
    await chart(
      plot,
      curves(rows, { most: modelLayers(), layer: state.layer + 1, dashed: true }),
      "Incoherence of the subspaces by layer",
    );
  for (const [element, spec, told] of later) await chart(element, spec, told);
}

async function subspacePanel({ model, index }, later) {
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
  box.append(views);
  if (!found.energy) {
    views.append(nothing(model.undefined.labels ?? ""));
    return box;
  }
  const energy = await unpack(found.energy);
  const rows = model.classes.map((label) => className(label));
  const columns = Array.from({ length: K }, (_, k) => `${k + 1}`);
  const cells = rows.flatMap((_, i) => columns.map((_, k) => ({ row: i, column: k, value: energy[i * K + k] })));
  const plot = h("div", { class: "chart" });
  const [least, most] = [Math.min(...energy), Math.max(...energy)];
  views.append(
    h(
      "div",
      { class: "panel" },
      h("h4", {}, "Energy of each class in each head's subspace"),
      plot,
      h(
        "p",
        {},
        `Fractions from ${number(least)} (faint) to ${number(most)}; equal heads would each have ${number(1 / K)}.`,
      ),
    ),
  );
  later.push([
    plot,
    matrix(cells, { rows, columns, columnTitle: "head", height: Math.min(Math.max(rows.length * 20, 60), 300) }),
    "Energy of classes in subspaces",
  ]);
  return box;
}

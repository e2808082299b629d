// Masks of the heads: the patches that the class token attends to most.

import { report } from "./data.js";
import { lacking, nothing, panelOf } from "./dom.js";
import { h } from "./element.js";
import { masked, picture } from "./heat.js";
import { countOf, number } from "./numbers.js";
import { choose, shownModels, state } from "./state.js";
import { masksOf } from "./views.js";

export const segmentsNeeds = ["image", "layer", "head", "a", "b"];

export async function renderSegments(body) {
  const panels = [];
  for (const { model, index } of shownModels()) {
    const found = model.layers[state.layer] ? await masksOf(model) : null;
    const missing = model.layers[state.layer]
      ? lacking(model, "cls", "This layer has no class token's attention.")
      : nothing(`This model has ${countOf(model.layers.length, "layer")}.`);
    panels.push(panelOf(model, index, found ? await masks(model, index, found) : missing));
  }
  const which = h(
    "p",
    { class: "note" },
    "The best head is defined by ground-truth masks: pass them with --masks, or run ",
    h("code", {}, "crate-mm analyze segments"),
    " on a dataset that has them.",
  );
  body.replaceChildren(h("div", { class: "halves" }, panels), which);
}

async function masks(model, index, found) {
  const [, rows, columns] = model.grid;
  const image = await picture(report.datas[model.data].pictures[state.image]);
  const tiles = found.map((mask, k) => {
    const canvas = h("canvas", { role: "img", "aria-label": `mask of head ${k + 1}` });
    masked(canvas, image, mask, { rows, columns });
    return h(
      "button",
      {
        type: "button",
        "data-key": `mask-${index}-${k}`,
        "aria-pressed": k === state.head,
        onclick: () => choose({ head: k }),
      },
      canvas,
      `head ${k + 1}`,
    );
  });
  const grid = h(
    "div",
    { class: "small", role: "group", "aria-label": "Heads", "data-scroll": `masks-${index}` },
    tiles,
  );
  const best = model.layers[state.layer].looks.best?.[state.image];
  if (!best) return grid;
  const truth = h("img", { src: report.datas[model.data].truths[state.image], alt: "ground-truth mask" });
  grid.prepend(h("figure", { class: "truth" }, truth, h("figcaption", {}, "ground truth")));
  const heads = best.map(({ label, head, iou }) => `class ${label}: head ${head + 1}, IoU ${number(iou)}`);
  return h("div", {}, grid, h("p", { class: "note", "data-told": "best" }, `Best head by class: ${heads.join("; ")}.`));
}

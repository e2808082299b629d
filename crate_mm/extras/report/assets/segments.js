// Masks of the heads: the patches that the class token attends to most.

import { report } from "./data.js";
import { lacking, panelOf } from "./charts.js";
import { button, div, h, note } from "./dom.js";
import { masked, picture } from "./heat.js";
import { number } from "./numbers.js";
import { choose, shownModels, state } from "./state.js";
import { masksOf } from "./views.js";

export async function renderSegments(body) {
  const panels = [];
  for (const { model, index } of shownModels()) {
    const all = model.layers[state.layer] && (await masksOf(model));
    const missing = () => lacking(model, "cls", "This layer has no class token's attention.");
    panels.push(panelOf(model, index, all ? await masks(model, index, all) : missing()));
  }
  const ask = [
    "With ground-truth masks (--masks), the page also names the best head of each class. For a dataset with masks, run ",
  ];
  ask.push(h("code", {}, "crate-mm analyze segments"), ".");
  body.replaceChildren(div("halves", panels), note(ask));
}

async function masks(model, index, all) {
  const [, rows, columns] = model.grid;
  const image = await picture(report.datas[model.data].pictures[state.image]);
  const tiles = all.map((mask, k) => {
    const content = [masked(image, mask, { rows, columns }, `mask of head ${k + 1}`), `head ${k + 1}`];
    return button(`mask-${index}-${k}`, content, () => choose({ head: k }), k === state.head);
  });
  const of = { class: "small", role: "group", "aria-label": "Heads", "data-scroll": `masks-${index}` };
  const best = model.layers[state.layer].looks.best?.[state.image];
  if (!best) return h("div", of, tiles);
  const truth = h("img", { src: report.datas[model.data].truths[state.image], alt: "ground-truth mask" });
  const heads = best.map(({ label, head, iou }) => `class ${label}: head ${head + 1}, IoU ${number(iou)}`);
  return [
    h("div", of, h("figure", { class: "truth" }, truth, h("figcaption", {}, "ground truth")), tiles),
    note(`Best head by class: ${heads.join("; ")}.`, "best"),
  ];
}

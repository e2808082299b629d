// One image: attention of a patch, the class token's map, components as colors, agreement of heads, predictions.

import { className, headsOf, part, report, unpack } from "./data.js";
import { h, heading, mark, nothing, number, percent, say } from "./dom.js";
import { draw, heat, picture, shares } from "./heat.js";
import { choose, choosePatch, headOf, shownModels, state } from "./state.js";
import { attentionRows, classMaps } from "./views.js";

export const imageNeeds = ["image", "layer", "head", "y", "x", "cls", "a", "b"];

export async function renderImage(body) {
  const { name, label } = report.images[state.image];
  const strip = report.images.map((image, i) => {
    const shown = h("img", { src: report.datas[0].pictures[i], alt: image.name });
    return h(
      "button",
      {
        type: "button",
        title: image.name,
        "data-key": `image-${i}`,
        "aria-pressed": i === state.image,
        onclick: () => choose({ image: i }),
      },
      shown,
    );
  });
  const title = h(
    "p",
    { class: "title" },
    h("strong", {}, name),
    label === null ? ", without a label" : `, label ${className(label)}`,
  );
  const panels = [];
  for (const shown of shownModels()) panels.push(await modelPanel(shown, label));
  body.replaceChildren(h("div", { class: "strip", role: "group", "aria-label": "Images" }, strip), title, ...panels);
  // Scroll only the strip: scrollIntoView would also scroll the page away from its top when it opens.
  const row = body.querySelector(".strip");
  const chosen = row.querySelector('[aria-pressed="true"]');
  if (chosen) row.scrollLeft = chosen.offsetLeft - row.offsetLeft - (row.clientWidth - chosen.offsetWidth) / 2;
}

// Cosines between the heads' rows.
export function agreement(heads) {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const lengths = heads.map((head) => Math.sqrt(dot(head, head)) || 1);
  return heads.flatMap((a, i) => heads.map((b, j) => dot(a, b) / (lengths[i] * lengths[j])));
}

async function modelPanel({ model, index }, label) {
  const box = h("article", { class: "model", "data-model": index, style: { "--mark": mark(index) } });
  box.append(heading(model, index));
  if (!model.layers[state.layer]) {
    box.append(nothing(`This model has ${model.layers.length} layers.`), predictions(model, label));
    return box;
  }
  const image = await picture(report.datas[model.data].pictures[state.image]);
  const views = h("div", { class: "views" });
  const texts = h("div", { class: "panel" });
  const found = await attentionRows(model);
  if (found && state.head >= found.heads.length) {
    views.append(h("div", { class: "wide" }, nothing(`This model has ${found.heads.length} heads.`)));
  } else if (found) {
    views.append(attentionView(model, index, image, found, texts), await clsView(model, index, image));
  } else {
    views.append(
      h("div", { class: "wide" }, nothing(model.undefined.attention ?? "This layer computes no attention matrix.")),
    );
  }
  texts.prepend(predictions(model, label));
  views.append(await componentsView(model, index, image), texts);
  if (found && found.heads.length > 1) views.append(...headsViews(model, index, image, found));
  box.append(views);
  return box;
}

function place(i, columns, side) {
  const [row, column] = [Math.floor(i / columns), i % columns];
  const span = (at) => (side === 1 ? `${at + 1}` : `${at * side + 1} to ${(at + 1) * side}`);
  return `row ${span(row)}, column ${span(column)}`;
}

function attentionView(model, index, image, { heads, rows, columns, chosen: token, side }, texts) {
  const chosen = token - 1;
  const values = heads[headOf(model)];
  const patches = values.subarray(1);
  const [, patchRows, patchColumns] = model.grid;
  const order = [...patches.keys()].sort((a, b) => patches[b] - patches[a]).slice(0, 3);
  const told = order.map((i) => [i === chosen ? "itself" : place(i, columns, side), patches[i]]);
  if (model.grid[0]) told.push(["the class token", values[0]]);
  told.sort((a, b) => b[1] - a[1]);
  const what = side === 1 ? "patch" : `block of ${side} × ${side} patches`;
  const sentence = `The ${what} at ${place(chosen, columns, side)} attends most to`;
  const list = h(
    "ol",
    { class: "top", "data-told": "attention" },
    told.map(([name, value]) => line(name, value, told[0][1])),
  );
  if (document.activeElement?.dataset.key === `attention-${index}`) {
    say(`${sentence} ${told.map(([name, value]) => `${name}: ${number(value)}`).join("; ")}`);
  }
  const figure = heat({
    key: `attention-${index}`,
    name: `${model.label}: attention of the chosen patch, layer ${state.layer + 1}, head ${state.head + 1}`,
    rows,
    columns,
    image,
    values: shares(patches),
    chosen,
    tell: (i) => `${place(i, columns, side)}: ${number(patches[i])}`,
    pick: (row, column) =>
      choosePatch(
        Math.min(row * side, patchRows - 1),
        Math.min(column * side, patchColumns - 1),
        patchRows,
        patchColumns,
      ),
    caption: "The chosen patch attends to",
  });
  figure.querySelector("canvas").attention = values;
  texts.append(h("h4", {}, sentence), list);
  return figure;
}

function line(name, value, most) {
  const bar = h("i", { style: { width: `${(100 * value) / (most || 1)}%` } });
  return h("li", {}, h("span", {}, name), h("span", {}, number(value)), h("span", { class: "barline" }, bar));
}

// Whether the class token's map explains the prediction depends on the pooling of the model's head.
const POOLED = {
  cls: "The head predicts from the class token, so this map explains the prediction.",
  mean: "The head predicts from the mean of all tokens, so this map does not explain the prediction.",
};

async function clsView(model, index, image) {
  const maps = await classMaps(model);
  if (!maps) return nothing(model.undefined.cls ?? "This layer has no class token.");
  const [, rows, columns] = model.grid;
  const values = maps[headOf(model)];
  const figure = heat({
    key: `cls-${index}`,
    name: `${model.label}: the class token's attention, layer ${state.layer + 1}, head ${state.head + 1}`,
    rows,
    columns,
    image,
    values: shares(values),
    tell: (i) => `${place(i, columns, 1)}: ${number(values[i])}`,
    caption: "The class token attends to",
  });
  figure.querySelector("canvas").attention = values;
  if (model.pool) figure.append(h("p", { class: "note", "data-told": "pool" }, POOLED[model.pool]));
  return figure;
}

async function componentsView(model, index) {
  const packed = model.layers[state.layer].looks.pca;
  if (!packed) return nothing(model.undefined.pca ?? "There are too few patches.");
  const [, rows, columns] = model.grid;
  const colours = part(await unpack(packed), packed.shape, state.image);
  const figure = heat({
    key: `pca-${index}`,
    name: `${model.label}: components of the patches as colors, layer ${state.layer + 1}`,
    rows,
    columns,
    colours,
    stretch: await aspect(model),
    caption: "Components as colors",
  });
  return figure;
}

// Height over width of a model's images.
export async function aspect(model) {
  const image = await picture(report.datas[model.data].pictures[state.image]);
  return image.naturalHeight / image.naturalWidth;
}

function headsViews(model, index, image, { heads, rows, columns, chosen: token }) {
  const chosen = token - 1;
  const tiles = heads.map((values, k) => {
    const canvas = h("canvas", { "aria-hidden": "true" });
    draw(canvas, { rows, columns, image, values: shares(values.subarray(1)), chosen });
    return h(
      "button",
      {
        type: "button",
        "data-key": `head-${index}-${k}`,
        "aria-pressed": k === state.head,
        onclick: () => choose({ head: k }),
      },
      canvas,
      `head ${k + 1}`,
    );
  });
  const cosines = agreement(heads);
  const K = heads.length;
  const least = Math.min(...cosines);
  const figure = heat({
    key: `agree-${index}`,
    name: `${model.label}: cosines between the heads' attention from the chosen patch`,
    rows: K,
    columns: K,
    values: Float64Array.from(cosines, (c) => 0.05 + (0.95 * (c - least)) / (1 - least || 1)),
    tell: (i) => `heads ${Math.floor(i / K) + 1} and ${(i % K) + 1}: cosine ${number(cosines[i])}`,
    caption: `Agreement of heads: cosines from ${number(least)} (faint) to 1`,
  });
  figure.querySelector("canvas").cosines = cosines;
  const grid = h(
    "div",
    { class: "span" },
    h("h4", {}, "All heads, from the chosen patch"),
    h("div", { class: "small", role: "group", "aria-label": "Heads" }, tiles),
  );
  return [grid, figure];
}

function predictions(model, label) {
  const told = model.predicted?.[state.image];
  if (!told) return nothing(model.undefined.classes ?? "");
  const right = label === null ? null : told[0][0] === label;
  const verdict =
    right === null
      ? null
      : h(
          "p",
          { class: right ? "right" : "wrong", "data-told": "verdict" },
          right ? "✓ right" : `✗ wrong: it is ${className(label)}`,
        );
  const list = told.map(([c, score]) => {
    const entry = line(className(c), score, 1);
    entry.children[1].textContent = percent(score);
    return entry;
  });
  return h(
    "div",
    { class: "said" },
    h("h4", {}, "Prediction"),
    h("ol", { class: "top", "data-told": "classes" }, list),
    verdict,
  );
}

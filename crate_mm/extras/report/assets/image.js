// One image: where the chosen token looks in A and in B, how the two differ, and what every head does.

import { grayOfPicture, over, paint, ring, scaleEnd, signed, strength, viridis } from "./colour.js";
import { className, report } from "./data.js";
import { h, heading, mark, nothing, number, percent, say } from "./dom.js";
import { picture } from "./heat.js";
import { attentionSentence, headsSentence } from "./sentences.js";
import { choose, choosePatch, headOf, patchIn, shownModels, state } from "./state.js";
import { attentionRows, scaleOf } from "./views.js";

export const imageNeeds = ["image", "layer", "head", "y", "x", "cls", "a", "b"];

let alone = false; // whether maps are shown without the picture below

export async function renderImage(body) {
  const { name, label } = report.images[state.image];
  const title = h(
    "p",
    { class: "title" },
    h("strong", {}, name),
    label === null ? ", without a label" : `, label ${className(label)}`,
  );
  const shown = [];
  for (const { model, index } of shownModels()) shown.push({ model, index, found: await attentionRows(model) });
  const panels = [];
  for (const view of shown) panels.push(await modelPanel(view, label));
  const [a, b] = shown.map(({ found }) => found);
  if (a && b && a.rows === b.rows && a.columns === b.columns) panels.push(await differenceView(shown));
  const sides = h("div", { class: "pair", "data-count": panels.length }, panels);
  body.replaceChildren(strip(), title, tokenChoice(shown[0].model), sides);
  if (a && a.heads.length > 1) body.append(await headsView(shown[0]));
  // Scroll only the strip: scrollIntoView would also scroll the page away from its top when it opens.
  const row = body.querySelector(".strip");
  const chosen = row.querySelector('[aria-pressed="true"]');
  if (chosen) row.scrollLeft = chosen.offsetLeft - row.offsetLeft - (row.clientWidth - chosen.offsetWidth) / 2;
}

function strip() {
  const buttons = report.images.map((image, i) =>
    h(
      "button",
      {
        type: "button",
        title: image.name,
        "data-key": `image-${i}`,
        "aria-pressed": i === state.image,
        onclick: () => choose({ image: i }),
      },
      h("img", { src: report.datas[0].pictures[i], alt: image.name }),
    ),
  );
  return h("div", { class: "strip", role: "group", "aria-label": "Images" }, buttons);
}

function tokenChoice(model) {
  const option = (text, cls, key) =>
    h(
      "button",
      { type: "button", "data-key": key, "aria-pressed": state.cls === cls, onclick: () => choose({ cls }) },
      text,
    );
  const over = h("input", {
    type: "checkbox",
    checked: !alone,
    "data-key": "over",
    onchange: () => {
      alone = !over.checked;
      choose({ image: state.image });
    },
  });
  const ask = model.grid?.[0]
    ? ["It asks: ", option("the chosen patch", false, "ask-patch"), option("the class token", true, "ask-cls")]
    : [];
  return h("p", { class: "buttons" }, ask, h("label", {}, over, " map over the picture"));
}

// The place of block i of a grid, in words.
function place(i, columns, side) {
  const span = (at) => (side === 1 ? `${at + 1}` : `${at * side + 1} to ${(at + 1) * side}`);
  return `row ${span(Math.floor(i / columns))}, column ${span(i % columns)}`;
}

// The names of the class token and of the blocks, with "itself" for the chosen one.
function namesOf({ rows, columns, side, chosen }) {
  const what = side === 1 ? "the patch" : `the block of ${side} × ${side} patches`;
  const names = Array.from({ length: rows * columns }, (_, i) => `${what} at ${place(i, columns, side)}`);
  return ["the class token", ...names].map((name, i) => (i === chosen ? "itself" : name));
}

// A row of attention in times uniform: times the number of tokens, divided by a block's number of patches.
export function timesUniform(row, { side }, [prefix, rows, columns]) {
  const tokens = prefix + rows * columns;
  return Float64Array.from(row, (a, i) => (i === 0 ? a * tokens : (a * tokens) / side ** 2));
}

async function modelPanel({ model, index, found }, label) {
  const box = h("article", { class: "model", "data-model": index, style: { "--mark": mark(index) } });
  box.append(heading(model, index));
  if (!model.layers[state.layer]) box.append(nothing(`This model has ${model.layers.length} layers.`));
  else if (!found) box.append(nothing(model.undefined.attention ?? "This layer computes no attention matrix."));
  else if (state.head >= found.heads.length) box.append(nothing(`This model has ${found.heads.length} heads.`));
  else box.append(await mapView(model, index, found));
  box.append(predictions(model, label));
  return box;
}

async function mapView(model, index, found) {
  const { rows, columns, side, chosen } = found;
  const head = headOf(model);
  const values = found.heads[head];
  const times = timesUniform(values, found, model.grid);
  const most = await scaleOf(model);
  const below = alone ? null : grayOfPicture(await picture(report.datas[model.data].pictures[state.image]));
  const canvas = h("canvas", { class: "pick", tabindex: 0, role: "application", "data-key": `attention-${index}` });
  const colour = (i, v) => (alone ? viridis(strength(times[1 + i], most)) : over(strength(times[1 + i], most), v));
  paint(canvas, { rows, columns, below, colour });
  if (chosen) ring(canvas, chosen - 1, rows, columns);
  canvas.attention = values;
  const names = namesOf(found);
  const token =
    chosen === 0
      ? "the class token"
      : names.map((_, i) => i && `the ${side === 1 ? "patch" : "block"} at ${place(i - 1, columns, side)}`)[chosen];
  const weights = model.grid[0] ? values : values.subarray(1);
  const sentence = attentionSentence(head + 1, token, weights, model.grid[0] ? names : names.slice(1));
  canvas.setAttribute("aria-label", `${model.label}, layer ${state.layer + 1}. ${sentence}`);
  canvas.setAttribute("aria-roledescription", "patches; arrow keys choose");
  const reading = h("p", { class: "reading", "aria-hidden": "true" });
  const patch = (row, column) =>
    choosePatch(
      Math.min(row * side, model.grid[1] - 1),
      Math.min(column * side, model.grid[2] - 1),
      model.grid[1],
      model.grid[2],
    );
  pickable(canvas, {
    rows,
    columns,
    pick: patch,
    read: (i) => (reading.textContent = `${place(i, columns, side)}: ${number(times[1 + i])} times uniform`),
  });
  if (document.activeElement?.dataset.key === `attention-${index}`) say(sentence);
  const own = model.grid[0]
    ? h("p", { class: "note" }, `The class token gets ${number(times[0])} times uniform.`)
    : null;
  const pooled = chosen === 0 && model.pool ? h("p", { class: "note", "data-told": "pool" }, POOLED[model.pool]) : null;
  return h(
    "div",
    {},
    canvas,
    scaleBar(most),
    reading,
    h("p", { class: "says", "data-told": "attention" }, sentence),
    own,
    pooled,
  );
}

// Clicks and arrow keys choose a cell of a canvas, the pointer reads it.
export function pickable(canvas, { rows, columns, pick, read }) {
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, size, count) => Math.min(Math.max(Math.floor((offset / size) * count), 0), count - 1);
    return [at(event.clientY - box.top, box.height, rows), at(event.clientX - box.left, box.width, columns)];
  };
  canvas.addEventListener("click", (event) => pick(...under(event)));
  canvas.addEventListener("pointermove", (event) => {
    const [row, column] = under(event);
    read(row * columns + column);
  });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [row, column] = patchIn(rows, columns);
    pick(
      Math.min(Math.max(row + moves[event.key][0], 0), rows - 1),
      Math.min(Math.max(column + moves[event.key][1], 0), columns - 1),
    );
  });
}

// The scale of a model's maps: 0, uniform, and its end.
function scaleBar(most) {
  const canvas = paint(h("canvas", { "aria-hidden": "true" }), {
    rows: 1,
    columns: 160,
    long: 160,
    colour: (i) => viridis(Math.sqrt(i / 159)),
  });
  const tick = (x, text) => h("span", { style: { left: `${(100 * x) / most}%` } }, text);
  return h(
    "div",
    { class: "scale" },
    canvas,
    h("div", { "aria-hidden": "true" }, tick(0, "0"), tick(1, "uniform"), tick(most, `${most}×`)),
  );
}

async function differenceView([first, second]) {
  const head = [first, second].map(({ model }) => headOf(model));
  const [a, b] = [first, second].map(({ model, found }, i) => timesUniform(found.heads[head[i]], found, model.grid));
  const { rows, columns } = first.found;
  const most =
    scaleEnd(
      a.map((value, i) => Math.abs(value - b[i])),
      a.length,
    ) / 2;
  const canvas = h("canvas", {
    role: "img",
    "aria-label": `A − B: ${first.model.label} minus ${second.model.label}, in times uniform`,
  });
  paint(canvas, { rows, columns, colour: (i) => signed(a[1 + i] - b[1 + i], most) });
  canvas.difference = a.map((value, i) => value - b[i]);
  return h(
    "article",
    { class: "model" },
    h("h3", {}, "A − B"),
    canvas,
    h(
      "p",
      { class: "note" },
      `Orange: ${first.model.label} takes more; purple: less. Full color is ${most} times uniform.`,
    ),
  );
}

async function headsView({ model, found }) {
  const { rows, columns, chosen } = found;
  const most = await scaleOf(model);
  const below = grayOfPicture(await picture(report.datas[model.data].pictures[state.image]));
  const weights = found.heads.map((values) => (model.grid[0] ? values : values.subarray(1)));
  const tiles = found.heads.map((values, k) => {
    const times = timesUniform(values, found, model.grid);
    const canvas = h("canvas", { "aria-hidden": "true" });
    paint(canvas, { rows, columns, below, long: 96, colour: (i, v) => over(strength(times[1 + i], most), v) });
    if (chosen) ring(canvas, chosen - 1, rows, columns);
    const spread = Math.exp(-weights[k].reduce((sum, a) => sum + (a > 0 ? a * Math.log(a) : 0), 0));
    const bar = h("span", { class: "barline" }, h("i", { style: { width: `${(100 * spread) / weights[k].length}%` } }));
    return h(
      "button",
      { type: "button", "data-key": `head-${k}`, "aria-pressed": k === state.head, onclick: () => choose({ head: k }) },
      canvas,
      `head ${k + 1}: ${Number(spread.toPrecision(2))} of ${weights[k].length} tokens`,
      bar,
    );
  });
  return h(
    "div",
    {},
    h("h4", {}, `All heads of ${model.label}, one scale`),
    h("p", { class: "says", "data-told": "heads" }, headsSentence(weights) ?? ""),
    h("div", { class: "small", role: "group", "aria-label": "Heads" }, tiles),
  );
}

// Whether the class token's map explains the prediction depends on the pooling of the model's head.
const POOLED = {
  cls: "The head predicts from the class token, so this map explains the prediction.",
  mean: "The head predicts from the mean of all tokens, so this map does not explain the prediction.",
};

function predictions(model, label) {
  const classes = model.predicted?.[state.image];
  if (!classes) return nothing(model.undefined.classes ?? "");
  const right = label === null ? null : classes[0][0] === label;
  const verdict = h(
    "p",
    { class: right ? "right" : "wrong", "data-told": "verdict" },
    right ? "✓ right" : `✗ wrong: it is ${className(label)}`,
  );
  const bar = (score) => h("span", { class: "barline" }, h("i", { style: { width: `${100 * score}%` } }));
  const list = classes.map(([c, score]) =>
    h("li", {}, h("span", {}, className(c)), h("span", {}, percent(score)), bar(score)),
  );
  return h(
    "div",
    { class: "said" },
    h("h4", {}, "Prediction"),
    h("ol", { class: "top", "data-told": "classes" }, list),
    right === null ? null : verdict,
  );
}

// One image: where the chosen token looks in A and in B, how the two differ, and what every head does.

import { grayOfPicture, over, paint, ring, scaleEnd, signed, strength, viridis } from "./colour.js";
import { className, report } from "./data.js";
import { bars, heading, lacking, mark, nothing, panelOf, say } from "./dom.js";
import { h } from "./element.js";
import { picture, pickable } from "./heat.js";
import { countOf, number, percent, short } from "./numbers.js";
import { attentionSentence, headsSentence } from "./sentences.js";
import { choose, choosePatch, shownModels, state } from "./state.js";
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
  for (const { model, index, found } of shown)
    panels.push(panelOf(model, index, ...(await mapView(model, index, found))));
  const [a, b] = shown.map(({ found }) => found);
  const both = a && b && a.rows === b.rows && a.columns === b.columns && a.side === b.side;
  if (both && state.head < Math.min(a.heads.length, b.heads.length)) panels.push(differenceView(shown));
  panels.push(
    h(
      "div",
      { class: "answers" },
      shown.map(({ model, index }) => predictions(model, index, label)),
    ),
  );
  body.replaceChildren(
    strip(),
    h("div", { class: "spread" }, title, tokenChoice(shown[0].model)),
    h("div", { class: "swipe four", "data-scroll": "maps" }, panels),
  );
  if (a && a.heads.length > 1) body.append(await headsView(shown[0]));
  // Scroll only the strip: scrollIntoView would also scroll the page away from its top when it opens.
  const row = body.querySelector(".strip");
  const chosen = row.querySelector('[aria-pressed="true"]');
  row.scrollLeft = chosen.offsetLeft - row.offsetLeft - (row.clientWidth - chosen.offsetWidth) / 2;
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
  const below = h("input", {
    type: "checkbox",
    checked: !alone,
    "data-key": "over",
    onchange: () => {
      alone = !below.checked;
      choose({ image: state.image });
    },
  });
  const ask = model.grid?.[0]
    ? ["Who takes: ", option("the chosen patch", false, "ask-patch"), option("the class token", true, "ask-cls")]
    : [];
  return h("p", { class: "buttons" }, ask, h("label", {}, below, " map over the picture"));
}

// The place of block i of a grid, in words.
function place(i, { columns, side, patches }) {
  const span = (at, most) => {
    const [first, last] = [at * side + 1, Math.min((at + 1) * side, most)];
    return first === last ? `${first}` : `${first} to ${last}`;
  };
  return `row ${span(Math.floor(i / columns), patches[0])}, column ${span(i % columns, patches[1])}`;
}

// The names of the class token and of the blocks.
function namesOf(found) {
  const what = found.side === 1 ? "the patch" : `the block of ${found.side} × ${found.side} patches`;
  const blocks = Array.from({ length: found.rows * found.columns }, (_, i) => `${what} at ${place(i, found)}`);
  return ["the class token", ...blocks];
}

// A row of attention in times uniform: times the number of tokens, divided by a block's number of patches.
export function timesUniform(row, { rows, columns, side, patches }, [prefix]) {
  const tokens = prefix + patches[0] * patches[1];
  const span = (at, most) => Math.min((at + 1) * side, most) - at * side;
  return Float64Array.from(row, (a, i) => {
    if (i === 0) return a * tokens;
    const [y, x] = [Math.floor((i - 1) / columns), (i - 1) % columns];
    return (a * tokens) / (span(y, patches[0]) * span(x, patches[1]));
  });
}

async function mapView(model, index, found) {
  if (!model.layers[state.layer]) return [nothing(`This model has ${countOf(model.layers.length, "layer")}.`)];
  if (!found) return [lacking(model, "attention", "This layer computes no attention matrix.")];
  if (state.head >= found.heads.length) return [nothing(`This model has ${countOf(found.heads.length, "head")}.`)];
  const { chosen } = found;
  const values = found.heads[state.head];
  const times = timesUniform(values, found, model.grid);
  const most = await scaleOf();
  const below = alone ? null : grayOfPicture(await picture(report.datas[model.data].pictures[state.image]));
  const canvas = h("canvas", { class: "pick", "data-key": `attention-${index}` });
  const colour = (i, v) => (alone ? viridis(strength(times[1 + i], most)) : over(strength(times[1 + i], most), v));
  paint(canvas, { ...found, below, colour });
  if (chosen) ring(canvas, chosen - 1, found);
  canvas.attention = values;
  const names = namesOf(found);
  const token = names[chosen];
  names[chosen] = "itself";
  const weights = model.grid[0] ? values : values.subarray(1);
  const sentence = attentionSentence(state.head + 1, token, weights, model.grid[0] ? names : names.slice(1));
  canvas.setAttribute("aria-label", `${model.label}, layer ${state.layer + 1}. ${sentence}`);
  canvas.setAttribute("aria-roledescription", "patches; arrow keys choose");
  const reading = h("p", { class: "reading", "aria-hidden": "true" });
  const read = (i) => (reading.textContent = `${place(i, found)}: ${number(times[1 + i])} times uniform`);
  if (chosen) read(chosen - 1);
  pickable(canvas, found, {
    read,
    chosen: () => Math.max(chosen - 1, 0),
    pick: (i) => {
      const [row, column] = [Math.floor(i / found.columns), i % found.columns].map((at) => at * found.side);
      choosePatch(row, column, ...found.patches);
    },
  });
  if (document.activeElement?.dataset.key === `attention-${index}`) say(sentence);
  const note = (text, told = null) => h("p", { class: "note", "data-told": told }, text);
  return [
    canvas,
    scaleBar(most),
    reading,
    h("p", { class: "says", "data-told": "attention" }, sentence),
    model.grid[0] ? note(`The class token gets ${short(times[0])} times uniform.`) : "",
    chosen === 0 && model.pool in POOLED ? note(POOLED[model.pool], "pool") : "",
  ];
}

// Whether the class token's map explains the prediction depends on the pooling of the model's head.
const POOLED = {
  __proto__: null,
  cls: "The head predicts from the class token, so this map explains the prediction.",
  mean: "The head predicts from the mean of all tokens, so this map does not explain the prediction.",
};

// The scale of a model's maps: 0, uniform, and its end. Its color, and so its place, is the square root of the amount.
function scaleBar(most) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  paint(canvas, { rows: 1, columns: 160, long: 160, colour: (i) => viridis(i / 159) });
  const tick = (x, text) => h("span", { style: { left: `${100 * strength(x, most)}%` } }, text);
  return h(
    "div",
    { class: "scale" },
    h("div", {}, canvas, `${most}× and more`),
    h("div", { class: "ticks", "aria-hidden": "true" }, tick(0, "0"), tick(1, "uniform")),
  );
}

function differenceView([first, second]) {
  const [a, b] = [first, second].map(({ model, found }) => timesUniform(found.heads[state.head], found, model.grid));
  const difference = a.map((value, i) => value - b[i]);
  const most = scaleEnd(difference.map(Math.abs), a.length) / 2;
  const name = `A − B: ${first.model.label} minus ${second.model.label}, in times uniform`;
  const canvas = h("canvas", { role: "img", "aria-label": name });
  paint(canvas, { ...first.found, colour: (i) => signed(difference[1 + i], most) });
  canvas.difference = difference;
  const legend = `Orange: A takes more; purple: less. Full color is ${short(most)} times uniform.`;
  return h("article", { class: "model" }, h("h3", {}, "A − B"), canvas, h("p", { class: "note" }, legend));
}

async function headsView({ model, found }) {
  const most = await scaleOf();
  const below = grayOfPicture(await picture(report.datas[model.data].pictures[state.image]));
  const weights = found.heads.map((values) => (model.grid[0] ? values : values.subarray(1)));
  const tiles = found.heads.map((values, k) => {
    const times = timesUniform(values, found, model.grid);
    const canvas = h("canvas", { "aria-hidden": "true" });
    paint(canvas, { ...found, below, long: 96, colour: (i, v) => over(strength(times[1 + i], most), v) });
    if (found.chosen) ring(canvas, found.chosen - 1, found);
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
  const sentence = headsSentence(weights);
  return h(
    "div",
    { class: "heads", style: { "--mark": mark(shownModels()[0].index) } },
    h("h4", {}, `All heads of ${model.label}, one scale. `, h("span", { "data-told": "heads" }, sentence ?? "")),
    h("div", { class: "small", role: "group", "aria-label": "Heads", "data-scroll": "heads" }, tiles),
  );
}

function predictions(model, index, label) {
  const box = h("div", { "data-model": index, style: { "--mark": mark(index) } }, heading(model, index));
  const classes = model.predicted?.[state.image];
  if (!classes) {
    box.append(lacking(model, "classes"));
    return box;
  }
  box.append(
    bars(
      classes.map(([c, score]) => [className(c), score, percent(score)]),
      { told: "classes" },
    ),
  );
  if (label === null) return box;
  const right = classes[0][0] === label;
  const verdict = right ? "✓ right" : `✗ wrong: it is ${className(label)}`;
  box.append(h("p", { class: right ? "right" : "wrong", "data-told": "verdict" }, verdict));
  return box;
}

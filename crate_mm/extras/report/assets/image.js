// One image: where the chosen token looks in A and in B, how the two differ, and what every head does.

import { paint, scaleEnd, strength, viridis } from "./colour.js";
import { className, report } from "./data.js";
import { lacking, mark, panelOf } from "./charts.js";
import { barline, bars, button, buttons, div, h, note, nothing, say, says } from "./dom.js";
import { attentionMap, differenceMap, grayBelow, pickPatch } from "./heat.js";
import { countOf, number, percent, short } from "./numbers.js";
import { attentionSentence, headsSentence } from "./sentences.js";
import { choose, shownModels, state } from "./state.js";
import { attentionRows, placeOf, scaleOf, spreadOf, tokenName } from "./views.js";

let alone = false; // whether maps are shown without the picture below

export async function renderImage(body) {
  const { name, label } = report.images[state.image];
  const shown = [];
  for (const entry of shownModels())
    shown.push({ ...entry, maps: await attentionRows(entry.model), below: await grayBelow(entry.model) });
  const panels = shown.map((entry) => panelOf(entry.model, entry.index, mapView(entry)));
  const answers = shown.map(({ model, index }) => panelOf(model, index, predictions(model, label)));
  const of = label === null ? ", without a label" : `, label ${className(label)}`;
  body.replaceChildren(
    strip(),
    div("spread", h("p", { class: "title" }, h("strong", {}, name), of), tokenChoice(shown[0].model)),
    h("div", { class: "swipe four", "data-scroll": "maps" }, panels, differenceView(shown), div("answers", answers)),
    shown[0].maps?.heads.length > 1 ? headsView(shown[0]) : "",
  );
}

// Made once: a new image of the same bytes is decoded again.
const thumbs = report.images.map(({ name }, i) => h("img", { src: report.datas[0].pictures[i], alt: name }));

function strip() {
  const images = report.images.map(({ name }, i) =>
    button(`image-${i}`, thumbs[i], () => choose({ image: i }), i === state.image, { title: name }),
  );
  return h("div", { class: "strip", role: "group", "aria-label": "Images", "data-scroll": "images" }, images);
}

function tokenChoice(model) {
  const option = (key, text, cls) => button(key, text, () => choose({ cls }), state.cls === cls);
  const below = h("input", { type: "checkbox", checked: !alone, "data-key": "over" });
  below.addEventListener("change", () => ((alone = !below.checked), choose({ image: state.image })));
  const ask = [option("ask-patch", "the chosen patch", false), option("ask-cls", "the class token", true)];
  return buttons(model.grid?.[0] ? ["Attention of: ", ask] : [], h("label", {}, below, " map over the picture"));
}

// Whether the class token's map explains the prediction depends on the pooling of the model's head.
const POOLED = {
  __proto__: null,
  cls: "The head predicts from the class token, so this map explains the prediction.",
  mean: "The head predicts from the mean of all tokens, so this map does not explain the prediction.",
};

function mapView({ model, index, maps, below }) {
  if (!maps) return lacking(model, "attention", "This layer computes no attention matrix.");
  if (state.head >= maps.heads.length) return nothing(`This model has ${countOf(maps.heads.length, "head")}.`);
  const [key, times, { chosen }] = [`attention-${index}`, maps.times[state.head], maps];
  const canvas = attentionMap(maps, state.head, alone ? null : below, 240, { class: "pick", "data-key": key });
  canvas.attention = maps.heads[state.head];
  const { weights, names, times: shares } = spreadOf(maps, state.head);
  const sentence = attentionSentence(state.head + 1, tokenName(chosen, maps), weights, names, shares);
  canvas.setAttribute("aria-label", `${model.label}, layer ${state.layer + 1}. ${sentence}`);
  const reading = h("p", { class: "reading", "aria-hidden": "true" });
  const read = (i) => (reading.textContent = `${placeOf(i, maps)}: ${number(times[1 + i])} times uniform`);
  if (chosen) read(chosen - 1);
  pickPatch(canvas, maps, read);
  if (document.activeElement?.dataset.key === key) say(sentence);
  return [
    canvas,
    scaleBar(weights.length),
    reading,
    says("attention", sentence),
    model.grid[0] ? note(`From the class token it takes ${short(times[0])} times uniform.`) : "",
    chosen === 0 && model.pool in POOLED ? note(POOLED[model.pool], "pool") : "",
  ];
}

// The scale of the maps of N tokens: 0, uniform, and its end. Its color, and so its place, is the square root of the amount.
function scaleBar(tokens) {
  const most = scaleOf();
  const canvas = h("canvas", { "aria-hidden": "true" });
  paint(canvas, { rows: 1, columns: 160, long: 160, colour: (i) => viridis(i / 159) });
  const tick = (x, text) => h("span", { style: { left: `${100 * strength(x, most)}%` } }, text);
  const ticks = { class: "ticks", "aria-hidden": "true" };
  return div(
    "scale",
    div(null, canvas, `${most}×${tokens > most ? " and more" : ""}`),
    h("div", ticks, tick(0, "0"), tick(1, "uniform")),
  );
}

function differenceView([first, second]) {
  const [a, b] = [first, second].map((shown) => shown?.maps?.times[state.head]);
  if (!a || !b || !sameGrid(first.maps, second.maps)) return "";
  const difference = a.map((value, i) => value - b[i]);
  const most = scaleEnd(difference.map(Math.abs), a.length) / 2;
  const name = `A − B: ${first.model.label} minus ${second.model.label}, in times uniform`;
  const canvas = differenceMap(first.maps, difference, most, 240, { role: "img", "aria-label": name });
  canvas.difference = difference;
  const legend = `Orange: A takes more; purple: less. Full color is ${short(most)} times uniform.`;
  return h("article", { class: "model" }, h("h3", {}, "A − B"), canvas, note(legend));
}

export function sameGrid(a, b) {
  return a.rows === b.rows && a.columns === b.columns && a.side === b.side;
}

function headsView({ model, index, maps, below }) {
  const all = maps.heads.map((_, k) => spreadOf(maps, k));
  const tiles = all.map(({ weights, spread }, k) => {
    const name = `head ${k + 1}: ${Number(spread.toPrecision(2))} of ${weights.length} tokens`;
    const content = [attentionMap(maps, k, below, 96), name, barline(spread / weights.length)];
    return button(`head-${k}`, content, () => choose({ head: k }), k === state.head);
  });
  const sentence = headsSentence(all.map(({ weights }) => weights)) ?? "";
  return h(
    "div",
    { class: "heads", style: { "--mark": mark(index) } },
    h("h4", {}, `All heads of ${model.label}, one scale. `, h("span", { "data-told": "heads" }, sentence)),
    h("div", { class: "small", role: "group", "aria-label": "Heads", "data-scroll": "heads" }, tiles),
  );
}

function predictions(model, label) {
  if (model.segmented) return segmentation(model.segmented);
  const classes = model.predicted?.[state.image];
  if (!classes) return lacking(model, "classes");
  const rows = classes.map(([c, score]) => [className(c), score, percent(score)]);
  const right = classes[0][0] === label;
  const verdict = { class: right ? "right" : "wrong", "data-told": "verdict" };
  const words = right ? "✓ right" : `✗ wrong: it is ${className(label)}`;
  return [bars(rows, { told: "classes" }), label === null ? "" : h("p", verdict, words)];
}

// The masks of a model that classifies each pixel, and the maps of its decoder's class tokens.
function segmentation({ images, end }) {
  const { predicted, truth, classes } = images[state.image];
  const tile = (src, text) =>
    src && h("figure", { class: "truth" }, h("img", { src, alt: text }), h("figcaption", {}, text));
  const tiles = classes.map(({ label, iou, map }) => {
    const score = iou === null ? "" : `, IoU ${short(iou)}`;
    return tile(map, `class token of ${className(label)}${score}`) || note(`${className(label)}${score}`, "iou");
  });
  return [
    div("small", tile(predicted, "predicted masks"), tile(truth, "ground truth"), tiles),
    end &&
      note(`Where a class token of the decoder's last layer looks; its scale ends at ${short(end)} times the mean.`),
  ];
}

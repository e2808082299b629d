// One layer, one image, one token: the eight steps from the token to its code, with the model's own numbers.

import { entry, paint, ring, signed } from "./colour.js";
import { className, part, report } from "./data.js";
import { button, buttons, div, h, note, nothing, say } from "./dom.js";
import { attentionMap, grayBelow, pickPatch } from "./heat.js";
import { countOf, percent, short } from "./numbers.js";
import { layerRates, reasons } from "./model.js";
import { playButton } from "./play.js";
import { choose, headOf, state } from "./state.js";
import { attentionRows, netOf, runOf, scaleOf, tokenName } from "./views.js";

const STEPS = [
  "Token",
  "Shadow on each subspace",
  "Whom it resembles",
  "What is added",
  "Normalized",
  "+ dictionary − threshold",
  "Below zero becomes 0",
  "The code",
];

export async function renderLayer(body) {
  const model = report.models[state.a];
  body.previousElementSibling.hidden = !model.running;
  if (!model.running) {
    body.replaceChildren(...notRunning(model));
    return;
  }
  if (!model.layers[state.layer]) {
    body.replaceChildren(nothing(`${model.label} has ${countOf(model.layers.length, "layer")}.`));
    return;
  }
  const view = await viewOf(model);
  const sentence = captions(view)[state.step - 1];
  const panels = STEPS.map((title, i) => {
    const when = i + 1 === state.step ? "now" : i + 1 < state.step ? "done" : "later";
    const of = { class: "stage", "data-when": when };
    const show = () => choose({ step: i + 1 });
    const name = button(`stage-${i + 1}`, `${i + 1} ${title}`, show, i + 1 === state.step, { class: "stage-name" });
    return h("article", of, name, PANELS[i](view));
  });
  body.replaceChildren(
    div("layer-view", chooser(view), div("stages", panels)),
    controls(model.layers.length),
    h("p", { class: "sentence", "data-told": "step" }, `Step ${state.step}: ${sentence}`),
    div("halves", rateBar(view), layerColumns("layer", view.net, view.run)),
  );
  if (body.contains(document.activeElement)) say(sentence);
}

// Why the page does not run a model's layers, and a button that chooses a model which it runs. Said here alone: the
// section "draw" is then left out.
function notRunning(model) {
  const able = report.models.findIndex((other) => other.running);
  const unpacked = `The weights of ${model.label} are not in this file. A larger --weights-megabytes includes them.`;
  const swap = () => choose({ a: able, b: state.a });
  return [
    h("p", { class: "none" }, model.why_not_running ?? unpacked),
    able < 0 ? "" : button("run-other", `Show ${report.models[able].label}`, swap),
  ];
}

// The numbers of the chosen layer, token and head: arrays of the token by the names of `runLayer`, and more.
async function viewOf(model) {
  const [l, net, run, maps] = [state.layer, await netOf(model), await runOf(model), await attentionRows(model)];
  const [layer, steps, N, d, token] = [net.layers[l], run.layers[l], net.tokens, net.width, maps.chosen];
  const of = (name) => part(steps[name], [N, steps[name].length / N], token);
  const names = ["input", "w", "added", "half", "normedHalf", "step", "code"];
  const view = Object.fromEntries(names.map((name) => [name, of(name)]));
  const threshold = layer.eta * layer.lambda;
  return {
    ...view,
    ...{ model, net, run, maps, layer, l, N, d, threshold, below: await grayBelow(model) },
    head: Math.min(headOf(model), layer.heads - 1),
    name: tokenName(token, maps),
    before: view.normedHalf.map((v, j) => v + view.step[j] - threshold),
    mostCode: steps.code.reduce((a, b) => Math.max(a, b), 0),
    rates: layerRates(net, layer, steps),
    bounds: model.bounds.rc_half,
    negative: view.normedHalf.filter((v) => v <= 0).length,
    left: view.code.filter((v) => v > 0).length,
  };
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);
const size = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
const largest = (...rows) => Math.max(...rows.flatMap((values) => [...values.map(Math.abs)]));

// The sentence of each step.
function captions(view) {
  const { d, l, N, layer, head, maps, net, name, input, added, normedHalf, step, before, threshold, code, left } = view;
  const times = maps.times[head];
  const most = times.indexOf(Math.max(...times));
  const from = most === maps.chosen ? "itself" : tokenName(most, maps);
  const j = code.indexOf(Math.max(...code));
  const sum = `${short(normedHalf[j])} ${step[j] < 0 ? "−" : "+"} ${short(Math.abs(step[j]))} − ${short(threshold)} = ${short(before[j])}`;
  return [
    `${capital(name)} enters as ${d} numbers.`,
    `LayerNorm, then its shadow on each head's subspace: ${layer.heads} times ${layer.headDim} numbers.`,
    `Head ${head + 1} compares shadows. ${capital(name)} takes most from ${from}: ${short(times[most])} times uniform. Uniform is the same from all ${N} tokens.`,
    `The heads' mixtures are mapped back and added. The step is ${short(size(added) / size(input))} times as long as the token. With the steps of all tokens, compression ${rateWords(view)}.`,
    `LayerNorm again: ${view.negative} of the ${d} numbers are now 0 or below.`,
    `The dictionary corrects each number, so that the code can rebuild the token. Then the threshold, ${short(threshold)}, is subtracted. For the largest number, number ${j + 1}: ${sum}.`,
    `What is below 0 is set to 0: ${d - left} of the ${d} numbers. The next layer gets none of them.`,
    `${countOf(left, "number")} ${left === 1 ? "is" : "are"} left. This is the code${l + 1 < net.layers.length ? ", and the next layer's input" : ""}.`,
  ];
}

// A row of numbers as a strip of colours, signs unless given.
function codeStrip(values, name, most = largest(values), colour = (v) => signed(v, most)) {
  const canvas = h("canvas", { class: "strip-code", role: "img", "aria-label": name });
  return paint(canvas, { rows: 1, columns: values.length, long: values.length, colour: (i) => colour(values[i]) });
}

// A sum of two rows, on one scale.
function sumOf(names, rows) {
  const most = largest(...rows);
  return names.map((name, i) => div("sum", h("span", {}, name), codeStrip(rows[i], name, most)));
}

const GRAY = [70, 73, 80];
const PANELS = [
  ({ input, d }) => [codeStrip(input, `${d} numbers of the token`), h("p", {}, `${d} numbers`)],
  ({ w, layer, head }) => {
    const most = largest(w);
    const heads = Array.from({ length: layer.heads }, (_, k) => {
      const values = part(w, [layer.heads, layer.headDim], k);
      const content = [`head ${k + 1}`, codeStrip(values, `shadow on head ${k + 1}`, most)];
      return button(`shadow-${k}`, content, () => choose({ head: k }), k === head);
    });
    return div("shadows", heads);
  },
  ({ maps, head, below }) => {
    const name = `what head ${head + 1} takes from each patch`;
    const canvas = attentionMap(maps, head, below, 160, { class: "map", role: "img", "aria-label": name });
    const words = `Brightest color: ${scaleOf()} times uniform. Class token: ${short(maps.times[head][0])} times.`;
    return [canvas, h("p", {}, words)];
  },
  ({ input, added, half }) => sumOf(["token", "+ step", "= sum"], [input, added, half]),
  ({ normedHalf, negative, d }) => [
    codeStrip(normedHalf, "the normalized token"),
    h("p", {}, `${negative} of ${d} are 0 or below`),
  ],
  ({ normedHalf, step, before, threshold }) =>
    sumOf(["before", "+ change", "= sum"], [normedHalf, step.map((v) => v - threshold), before]),
  ({ before, d, left }) => {
    const most = largest(before);
    const colour = (v) => (v <= 0 ? GRAY : signed(v, most));
    return [codeStrip(before, "what is below zero is gray", most, colour), h("p", {}, `${d - left} of ${d} become 0`)];
  },
  ({ code, d, left, mostCode }) => [
    codeStrip(code, "the code", mostCode, (v) => entry(v, mostCode)),
    h("p", {}, `${left} of ${d} are left`),
  ],
];

// The image with the chosen token ringed; a click or an arrow chooses a patch.
function chooser({ maps, below, name }) {
  const of = { class: "pick", "data-key": "layer-image", "aria-label": `the image; ${name} is chosen` };
  const canvas = h("canvas", of);
  paint(canvas, { rows: 1, columns: 1, below, long: 180, colour: (_, v) => Array(3).fill(255 * v) });
  if (maps.chosen) ring(canvas, maps.chosen - 1, maps);
  pickPatch(canvas, maps);
  const { label } = report.images[state.image];
  const words = `${label === null ? "" : `Label ${className(label)}. `}Chosen: ${name}.`;
  const cls = button("class-token", "class token", () => choose({ cls: !state.cls }), state.cls);
  return h("figure", { class: "chooser" }, canvas, cls, h("figcaption", {}, words));
}

// What the compression does to R^c: of lengths scaled to 1 (those have bounds), less means more alike.
function rateWords({ rates: { before, after }, bounds }) {
  const [a, b] = [short(before), short(after)];
  if (a === b) return `leaves R\u1d9c of this image at ${a} nats`;
  const alike = `: within the heads' subspaces its tokens become ${after < before ? "more" : "less"} alike`;
  return `${after < before ? "lowers" : "raises"} R\u1d9c of this image from ${a} to ${b} nats${bounds ? alike : ""}`;
}

function rateBar(view) {
  const { rates, bounds, l } = view;
  const script = `Sparsification follows and changes Rᶜ again. (CRATE's published code reports Rᶜ of the normalized input instead: ${short(rates.normed)}.)`;
  const words = `In layer ${l + 1} compression ${rateWords(view)}.`;
  if (!bounds) return div(null, note(`${words} ${script}`));
  const [floor, ceiling] = bounds;
  const at = (v, name) => h("i", { style: { left: `${(100 * (v - floor)) / (ceiling - floor)}%` }, title: name });
  const ends = `On the bar, gray is before and blue is after. It runs from ${short(floor)} (all tokens equal) to ${short(ceiling)} (as different as possible).`;
  return div(
    null,
    h("div", { class: "rate-bar", "aria-hidden": "true" }, at(rates.before, "before"), at(rates.after, "after")),
    note(`${words} ${ends} ${script}`),
  );
}

// A button for each layer of a forward pass, with R^c after the compression, the share of the code that is left and, with
// `map`, a map.
export function layerColumns(key, net, run, map = () => "") {
  const columns = run.layers.map((steps, l) => {
    const lines = [`layer ${l + 1}`, `Rᶜ ${short(layerRates(net, net.layers[l], steps).after)}`];
    lines.push(`${percent(reasons(steps).left)} left`);
    const content = [map(l), lines.map((line) => h("span", {}, line))];
    return button(`${key}-${l}`, content, () => choose({ layer: l }), l === state.layer);
  });
  return h("div", { class: "columns scroll", role: "group", "aria-label": "layers", "data-scroll": key }, columns);
}

// The next step; after the last step the next layer; false at the end.
function next(depth) {
  if (state.step < STEPS.length) choose({ step: state.step + 1 });
  else if (state.layer < depth - 1) choose({ layer: state.layer + 1, step: 1 });
  else return false;
  return true;
}

function controls(depth) {
  const restart = () => choose({ layer: 0, step: 1 });
  const play = { begin: () => next(depth) || restart(), next: () => next(depth), milliseconds: 1500 };
  const back = () => choose({ step: Math.max(state.step - 1, 1) });
  const box = buttons(
    button("first", "|< first", () => choose({ step: 1 })),
    button("back", "< step", back),
    playButton("play", "play >", play),
    button("forward", "step >", () => next(depth)),
    button("start", "back to layer 1", restart),
    h("span", { class: "note" }, `${state.step} of ${STEPS.length}`),
  );
  box.addEventListener("keydown", ({ key }) => (key === "ArrowRight" ? next(depth) : key === "ArrowLeft" && back()));
  return box;
}

// One layer, one image, one token: the eight steps from the token to its code, with the model's own numbers.

import { entry, grayOf, over, paint, ring, signed, strength } from "./colour.js";
import { className, part, report } from "./data.js";
import { nothing, say } from "./dom.js";
import { h } from "./element.js";
import { countOf, percent, short } from "./numbers.js";
import { pickable } from "./heat.js";
import { layerRates, reasons } from "./model.js";
import { playButton } from "./play.js";
import { choose, choosePatch, headOf, patchIn, state } from "./state.js";
import { inputOf, netOf, runOf, scaleOf, whyNotRunning } from "./views.js";

export const layerNeeds = ["a", "image", "layer", "head", "y", "x", "cls", "step"];

const STEPS = [
  "Token",
  "Its shadow on each subspace",
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
  const layer = state.layer;
  if (!model.layers[layer]) {
    body.replaceChildren(nothing(`${model.label} has ${countOf(model.layers.length, "layer")}.`));
    return;
  }
  const [net, run, bytes] = [await netOf(model), await runOf(model, state.image), await inputOf(model, state.image)];
  const view = { ...viewOf(model, net, run, layer), scale: await scaleOf() };
  const below = grayOf(bytes, report.datas[model.data].inputs.shape.slice(1));
  const sentence = captions(view)[state.step - 1];
  const panels = STEPS.map((title, i) => {
    const panel = h("article", {
      class: "stage",
      "data-stage": i + 1,
      "data-on": String(i + 1 === state.step),
      "data-done": String(i + 1 < state.step),
    });
    panel.append(
      h(
        "button",
        {
          type: "button",
          class: "stage-name",
          "data-key": `stage-${i + 1}`,
          "aria-pressed": i + 1 === state.step,
          onclick: () => choose({ step: i + 1 }),
        },
        `${i + 1} ${title}`,
      ),
    );
    panel.append(...PANELS[i](view, below));
    return panel;
  });
  body.replaceChildren(
    h("div", { class: "layer-view" }, chooser(net, view, below), h("div", { class: "stages" }, panels)),
    controls(net),
    h("p", { class: "sentence", "data-told": "step" }, `Step ${state.step}: ${sentence}`),
    h("div", { class: "halves" }, rateBar(view), layerStrip(net, run, layer)),
  );
  if (body.contains(document.activeElement)) say(sentence);
}

// Why the page does not run a model's layers, and a button that chooses a model which it runs. Said here alone: the
// section "draw" is then left out.
function notRunning(model) {
  const able = report.models.findIndex((other) => other.running);
  const swap = () => choose({ a: able, b: state.a });
  const button = { type: "button", "data-key": "run-other", onclick: swap };
  return [
    h("p", { class: "none" }, whyNotRunning(model)),
    able < 0 ? "" : h("button", button, `Show ${report.models[able].label}`),
  ];
}

// The numbers of the chosen layer, token and head.
function viewOf(model, net, run, l) {
  const [layer, steps, N, d] = [net.layers[l], run.layers[l], net.tokens, net.width];
  const [row, column] = patchIn(net.rows, net.columns);
  const token = state.cls ? 0 : 1 + row * net.columns + column;
  const head = Math.min(headOf(model), layer.heads - 1);
  const of = (values, width = d) => part(values, [N, width], token);
  const inner = layer.heads * layer.headDim;
  const attention = part(steps.attention, [layer.heads, N, N], head, token);
  const [half, added, code, normedHalf, step] = [steps.half, steps.added, steps.code, steps.normedHalf, steps.step].map(
    (v) => of(v),
  );
  const threshold = layer.eta * layer.lambda;
  const before = normedHalf.map((v, j) => v + step[j] - threshold);
  const example = code.reduce((best, v, j) => (v > code[best] ? j : best), 0);
  const eps = report.run.settings.eps_squared;
  return {
    model,
    net,
    layer,
    l,
    token,
    head,
    N,
    d,
    steps,
    attention,
    token_in: of(steps.input),
    shadows: of(steps.w, inner),
    added,
    half,
    normedHalf,
    step,
    threshold,
    before,
    code,
    example,
    rates: layerRates(net, layer, steps, eps),
    bounds: boundsOf(N, layer, eps),
    all: reasons(steps),
  };
}

// The least and the largest R^c that N tokens of length 1 can have: all equal, or as orthogonal as they can be. Tokens of
// any length have no bounds: null.
function boundsOf(N, { heads: K, headDim: p }, eps) {
  if (report.run.settings.raw_length) return null;
  const m = Math.min(N, p);
  return { floor: (K / 2) * Math.log(1 + p / eps), ceiling: ((K * m) / 2) * Math.log(1 + p / (m * eps)) };
}

function tokenName({ net, token }, i = token) {
  if (i === token && arguments.length > 1) return "itself";
  return i === 0
    ? "the class token"
    : `the patch at row ${Math.floor((i - 1) / net.columns) + 1}, column ${((i - 1) % net.columns) + 1}`;
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);
const size = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));

// The sentence of each step.
function captions(view) {
  const {
    d,
    layer,
    head,
    attention,
    N,
    added,
    token_in,
    normedHalf,
    step,
    threshold,
    code,
    example: j,
    before,
    l,
    net,
  } = view;
  const order = [...attention.keys()].sort((a, b) => attention[b] - attention[a]);
  const left = code.filter((v) => v > 0).length;
  const below = normedHalf.filter((v) => v <= 0).length / d;
  return [
    `${capital(tokenName(view))} enters as ${d} numbers.`,
    `LayerNorm, then its shadow on each head's subspace: ${layer.heads} times ${layer.headDim} numbers.`,
    `Head ${head + 1} compares shadows. ${capital(tokenName(view))} takes most from ${tokenName(view, order[0])}: ${short(N * attention[order[0]])} times uniform. Uniform is the same from all ${N} tokens.`,
    `The heads' mixtures are mapped back and added. The step is ${short(size(added) / size(token_in))} times as long as the token. With the steps of all tokens, compression ${rateWords(view)}.`,
    `LayerNorm again: ${percent(below)} of the numbers are now 0 or below.`,
    `The dictionary adds what is missing to rebuild the token, and the threshold takes ${short(threshold)} off each number. The largest, number ${j + 1}: ${short(normedHalf[j])} ${step[j] < 0 ? "−" : "+"} ${short(Math.abs(step[j]))} − ${short(threshold)} = ${short(before[j])}.`,
    `What is below 0 is set to 0: ${d - left} of the ${d} numbers. The next layer gets none of them.`,
    `${countOf(left, "number")} ${left === 1 ? "is" : "are"} left. This is the code${l + 1 < net.layers.length ? ", and the next layer's input" : ""}.`,
  ];
}

// A row of numbers as a strip of colours: signs, or amounts of a code.
function codeStrip(values, name, { most = Math.max(...values.map(Math.abs)), code = false, grey = null } = {}) {
  const canvas = h("canvas", { class: "strip-code", role: "img", "aria-label": name });
  const columns = values.length;
  paint(canvas, {
    rows: 1,
    columns,
    long: columns,
    colour: (i) => (grey && grey[i] <= 0 ? [70, 73, 80] : code ? entry(values[i], most) : signed(values[i], most)),
  });
  return canvas;
}

const PANELS = [
  (v) => [codeStrip(v.token_in, `${v.d} numbers of the token`), h("p", {}, `${v.d} numbers`)],
  (v) => {
    const most = Math.max(...v.shadows.map(Math.abs));
    return [
      h(
        "div",
        { class: "shadows" },
        Array.from({ length: v.layer.heads }, (_, k) => {
          const values = v.shadows.subarray(k * v.layer.headDim, (k + 1) * v.layer.headDim);
          return h(
            "button",
            {
              type: "button",
              "data-key": `shadow-${k}`,
              "aria-pressed": k === v.head,
              onclick: () => choose({ head: k }),
            },
            `head ${k + 1}`,
            codeStrip(values, `shadow on head ${k + 1}`, { most }),
          );
        }),
      ),
    ];
  },
  (v, below) => {
    const canvas = h("canvas", {
      class: "map",
      role: "img",
      "aria-label": `what head ${v.head + 1} takes from each patch`,
    });
    const weights = v.attention.map((a) => v.N * a);
    const most = v.scale;
    paint(canvas, {
      rows: v.net.rows,
      columns: v.net.columns,
      below,
      long: 160,
      colour: (i, gray) => over(strength(weights[1 + i], most), gray),
    });
    if (v.token) ring(canvas, v.token - 1, { rows: v.net.rows, columns: v.net.columns });
    return [
      canvas,
      h("p", {}, `From the class token: ${short(weights[0])} times uniform. Colors: 0 to ${most} times.`),
    ];
  },
  (v) => {
    const most = Math.max(...[v.token_in, v.added, v.half].flatMap((x) => [...x.map(Math.abs)]));
    return [
      ["token", v.token_in],
      ["+ step", v.added],
      ["= sum", v.half],
    ].map(([name, values]) => h("div", { class: "sum" }, h("span", {}, name), codeStrip(values, name, { most })));
  },
  (v) => [
    codeStrip(v.normedHalf, "the normalized token"),
    h("p", {}, `${percent(v.normedHalf.filter((x) => x <= 0).length / v.d)} are 0 or below`),
  ],
  (v) => {
    const most = Math.max(...[v.normedHalf, v.before].flatMap((x) => [...x.map(Math.abs)]));
    return [
      ["before", v.normedHalf],
      ["change", v.before.map((x, j) => x - v.normedHalf[j])],
      ["= sum", v.before],
    ].map(([name, values]) => h("div", { class: "sum" }, h("span", {}, name), codeStrip(values, name, { most })));
  },
  (v) => [
    codeStrip(v.before, "what is below zero is gray", { grey: v.before }),
    h("p", {}, `${v.code.filter((x) => x === 0).length} of ${v.d} become 0`),
  ],
  (v) => [
    codeStrip(v.code, "the code", { code: true, most: v.steps.code.reduce((a, b) => Math.max(a, b), 0) }),
    h("p", {}, `${v.code.filter((x) => x > 0).length} of ${v.d} are left`),
  ],
];

// The image with the chosen token ringed; a click or an arrow chooses a patch.
function chooser(net, view, below) {
  const canvas = h("canvas", {
    class: "pick",
    "data-key": "layer-image",
    "aria-label": `the image; ${tokenName(view)} is chosen`,
    "aria-roledescription": "patches; arrow keys choose",
  });
  const cells = { rows: net.rows, columns: net.columns };
  paint(canvas, { rows: 1, columns: 1, below, long: 180, colour: (_, v) => Array(3).fill(255 * v) });
  if (view.token) ring(canvas, view.token - 1, cells);
  pickable(canvas, cells, {
    chosen: () => Math.max(view.token - 1, 0),
    pick: (i) => choosePatch(Math.floor(i / net.columns), i % net.columns, net.rows, net.columns),
  });
  const { label } = report.images[state.image];
  return h(
    "figure",
    { class: "chooser" },
    canvas,
    h(
      "button",
      {
        type: "button",
        "data-key": "class-token",
        "aria-pressed": state.cls,
        onclick: () => choose({ cls: !state.cls }),
      },
      "class token",
    ),
    h("figcaption", {}, `${label === null ? "" : `${capital(className(label))}. `}Chosen: ${tokenName(view)}.`),
  );
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
  const box = h("div", { "data-told": "rates" });
  let ends = "";
  if (bounds) {
    const { floor, ceiling } = bounds;
    const at = (v, name) => h("i", { style: { left: `${(100 * (v - floor)) / (ceiling - floor)}%` }, title: name });
    box.append(
      h("div", { class: "rate-bar", "aria-hidden": "true" }, at(rates.before, "before"), at(rates.after, "after")),
    );
    ends = ` Equal tokens would have ${short(floor)}, tokens as different as they can be ${short(ceiling)}.`;
  }
  const script = ` Both are of tokens as they are; the published script takes those before the step after LayerNorm: ${short(rates.normed)}.`;
  box.append(h("p", { class: "note" }, `In layer ${l + 1} compression ${rateWords(view)}.${ends}${script}`));
  return box;
}

// The layers as a strip: R^c after the compression, and the share of the code that is left.
function layerStrip(net, run, chosen) {
  const eps = report.run.settings.eps_squared;
  return h(
    "div",
    { class: "columns scroll", role: "group", "aria-label": "layers", "data-scroll": "layers" },
    run.layers.map((steps, l) => {
      const rate = layerRates(net, net.layers[l], steps, eps).after;
      const left = reasons(steps).left;
      return h(
        "button",
        { type: "button", "data-key": `layer-${l}`, "aria-pressed": l === chosen, onclick: () => choose({ layer: l }) },
        h("span", {}, `layer ${l + 1}`),
        h("span", {}, `R\u1d9c ${short(rate)}`),
        h("span", {}, `${percent(left)} left`),
      );
    }),
  );
}

// The next step; after the last step the next layer; false at the end.
function next(depth) {
  if (state.step < STEPS.length) choose({ step: state.step + 1 });
  else if (state.layer < depth - 1) choose({ layer: state.layer + 1, step: 1 });
  else return false;
  return true;
}

function controls(net) {
  const depth = net.layers.length;
  const button = (key, text, click) => h("button", { type: "button", "data-key": key, onclick: click }, text);
  const play = {
    begin: () => next(depth) || choose({ layer: 0, step: 1 }),
    next: () => next(depth),
    milliseconds: 1500,
  };
  const box = h(
    "p",
    { class: "buttons", role: "group", "aria-label": "steps" },
    button("first", "|< first", () => choose({ step: 1 })),
    button("back", "< step", () => choose({ step: Math.max(state.step - 1, 1) })),
    playButton("play", "play >", play),
    button("forward", "step >", () => next(depth)),
    button("start", "from layer 1", () => choose({ layer: 0, step: 1 })),
    h("span", { class: "note" }, `${state.step} of ${STEPS.length}`),
  );
  box.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    if (event.key === "ArrowRight") next(depth);
    else choose({ step: Math.max(state.step - 1, 1) });
  });
  return box;
}

// The model runs here: on a drawing, a picture or a shown image, with lambda changed and parts switched off.

import { changes, changeWords, isChanged, toggled } from "./changes.js";
import { grayOf, over, paint, ring, strength } from "./colour.js";
import { className, part, report } from "./data.js";
import { bars, pause, say } from "./dom.js";
import { h } from "./element.js";
import { countOf, percent, short, twoPercents } from "./numbers.js";
import { forward, layerRates, reasons } from "./model.js";
import { brushed, digits8, enlarge, fromPicture, fromText, GLYPHS, toText } from "./pixels.js";
import { choose, headOf, INK_LETTERS, patchIn, state } from "./state.js";
import { inputOf, netOf, runOf, scaleOf } from "./views.js";

export const drawNeeds = ["a", "image", "layer", "head", "y", "x", "cls", "lambda", "off", "ink"];

const PAD = 320; // pixels of the pad
const LEAST = 1e-3; // of lambda's slider, which is logarithmic to 10; below it lambda is 0

let board = null; // the section's elements, built once a model
let dropped = null; // bytes of a picture that was dropped in place of the image `droppedOn`, or null
let droppedOn = null;
let centred = true;
let shade = 255; // of the brush on a shown image

export async function renderDraw(body) {
  const model = report.models[state.a];
  document.getElementById("draw").hidden = !model.running;
  if (!model.running) {
    board = null;
    return;
  }
  const net = await netOf(model);
  if (board?.model !== model || !body.contains(board.root)) build(body, model, net);
  await update(model, net);
}

// The bytes that the model gets now.
async function currentInput(model) {
  const { drawing, inputs } = report.datas[model.data];
  const [, , height, width] = inputs.shape;
  const strokes = fromText(state.ink);
  if (droppedOn !== state.image) dropped = null;
  if (dropped) return dropped;
  const image = await inputOf(model, state.image);
  if (!strokes.length) return state.ink === "-" ? new Uint8Array(image.length) : image;
  if (!drawing) return brushed(image, strokes, inputs.shape.slice(1), shade);
  const bytes = digits8(strokes, centred);
  return drawing.times === 1 ? bytes : enlarge(bytes, height / drawing.times, width / drawing.times, drawing.times);
}

function build(body, model, net) {
  const { drawing, inputs } = report.datas[model.data];
  const pad = h("canvas", {
    class: "pad",
    width: PAD,
    height: PAD,
    tabindex: 0,
    "data-key": "pad",
    role: "application",
  });
  pad.setAttribute("aria-label", "drawing pad; arrow keys move, space draws a line to the place, u undoes");
  const gets = h("canvas", { class: "gets", role: "img", "aria-label": "what the model gets" });
  const key = (text, click, name) => h("button", { type: "button", "data-key": name, onclick: click }, text);
  const undo = () => choose({ ink: toText(fromText(state.ink).slice(0, -1)) || "-" });
  const buttons = h(
    "p",
    { class: "buttons" },
    key("Undo", undo, "undo"),
    key("Clear", () => ((dropped = null), choose({ ink: "-" })), "clear"),
    key("Put the chosen image here", () => ((dropped = null), choose({ ink: "" })), "put"),
  );
  const extra = h("p", { class: "buttons" });
  if (drawing) {
    const glyph = h(
      "select",
      {
        "data-key": "glyph",
        "aria-label": "draw one of the digits",
        onchange: () => ((dropped = null), choose({ ink: toText(GLYPHS[glyph.value]) })),
      },
      h("option", { value: "" }, "one of each digit"),
      GLYPHS.map((_, n) => h("option", { value: n }, n)),
    );
    const centre = h("input", {
      type: "checkbox",
      checked: true,
      "data-key": "centre",
      onchange: () => ((centred = centre.checked), choose({ ink: state.ink })),
    });
    extra.append(glyph, h("label", {}, centre, " center it"));
  } else {
    const brush = h(
      "select",
      { "data-key": "brush", onchange: () => (shade = Number(brush.value)) },
      [
        ["white", 255],
        ["gray", 128],
        ["black", 0],
      ].map(([name, value]) => h("option", { value }, name)),
    );
    const file = h("input", {
      type: "file",
      accept: "image/*",
      "data-key": "file",
      onchange: () => drop(file.files[0], inputs),
    });
    extra.append(h("label", {}, "brush ", brush), h("label", {}, "a picture of yours ", file));
  }
  const slider = h("input", {
    type: "range",
    min: -3,
    max: 1,
    step: 0.05,
    "data-key": "lambda",
    "aria-label": "lambda",
    oninput: () => choose({ lambda: slider.value <= -3 ? 0 : Number((10 ** slider.value).toPrecision(2)) }),
  });
  const trained = key("As trained", () => choose({ lambda: null, off: "" }), "trained");
  board = {
    model,
    pad,
    gets,
    slider,
    answer: h("div", {}),
    sentence: h("p", { class: "says", "data-told": "answer" }),
    changed: h("p", { class: "says", "data-told": "changed" }),
    matters: h("p", { class: "says", "data-told": "matters" }),
    rough: h("p", { class: "note" }),
    lambda: h("output", {}),
    columns: h("div", { class: "columns scroll", role: "group", "aria-label": "layers", "data-scroll": "layers" }),
    switches: h("div", { class: "scroll", "data-scroll": "switches" }),
    root: h("div", {}),
  };
  board.root.append(
    h(
      "div",
      { class: "drawing" },
      h("div", { class: "pen" }, pad, h("div", {}, buttons, extra)),
      h("div", { class: "given" }, h("h4", {}, "What the model gets"), gets, board.rough),
      h("div", { class: "answers" }, h("h4", {}, "Its answer"), board.answer, board.sentence),
    ),
    h(
      "div",
      { class: net.layers.length > 5 ? "" : "halves" },
      h(
        "div",
        {},
        h("h4", {}, "Each layer: where the chosen token looks, Rᶜ after compression, entries left"),
        board.columns,
      ),
      h(
        "details",
        { open: innerWidth > 640 || isChanged() },
        h("summary", {}, "Change the model: lambda and heads"),
        h("p", { class: "buttons" }, h("label", {}, "lambda ", slider, " ", board.lambda), trained),
        board.switches,
        board.matters,
      ),
    ),
    board.changed,
  );
  body.replaceChildren(board.root);
  listen(pad, inputs);
  switchboard(net);
}

async function drop(file, inputs) {
  try {
    if (!file) return;
    dropped = await fromPicture(file, inputs.shape.slice(2), inputs.shape[1]);
    droppedOn = state.image;
    choose({ ink: "" });
  } catch {
    board.rough.textContent = `${file.name} is no picture that this browser reads.`;
  }
}

// Drawing by pointer, and by keys: arrows move a cross, space draws to it.
function listen(pad, inputs) {
  let line = null;
  const cross = [0.5, 0.5];
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) =>
      Math.min(Math.max(v, 0), 1),
    );
  };
  const add = (point, start) => {
    const strokes = fromText(state.ink);
    if (start || !strokes.length) strokes.push([point]);
    else strokes.at(-1).push(point);
    choose({ ink: toText(strokes) });
  };
  pad.addEventListener("pointerdown", (event) => {
    dropped = null;
    line = at(event);
    pad.setPointerCapture(event.pointerId);
    add(line, true);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!line) return;
    const next = at(event);
    if (Math.hypot(next[0] - line[0], next[1] - line[1]) < 0.02) return;
    line = next;
    add(line, false);
  });
  for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => (line = null));
  pad.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    if (event.key in moves)
      moves[event.key].forEach((by, i) => (cross[i] = Math.min(Math.max(cross[i] + by / 16, 0), 1)));
    else if (event.key === " ") add([...cross], event.shiftKey || !fromText(state.ink).length);
    else if (event.key === "u") return board.root.querySelector('[data-key="undo"]').click();
    else return;
    event.preventDefault();
    drawPad(inputs, cross);
  });
  pad.addEventListener("dragover", (event) => event.preventDefault());
  pad.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) drop(event.dataTransfer.files[0], inputs);
  });
}

// The heads of all layers as switches: a cell is a head, a name is all of its row or column.
function switchboard(net) {
  const most = Math.max(...net.layers.map(({ heads }) => heads));
  const flip = (parts) => () => choose({ off: toggled(parts) });
  const button = (name, text, parts) => h("button", { type: "button", "data-key": name, onclick: flip(parts) }, text);
  const every = (l) => Array.from({ length: net.layers[l].heads }, (_, k) => ["h", l, k]);
  const rows = Array.from({ length: most }, (_, k) => {
    const row = net.layers.flatMap(({ heads }, l) => (k < heads ? [["h", l, k]] : []));
    const cells = net.layers.map(({ heads }, l) =>
      h("td", {}, k < heads ? button(`off-${l}-${k}`, "", [["h", l, k]]) : null),
    );
    return h("tr", {}, h("th", { scope: "row" }, button(`off-row-${k}`, `head ${k + 1}`, row)), cells);
  });
  const names = net.layers.map((_, l) =>
    h("th", { scope: "col" }, button(`off-layer-${l}`, `layer ${l + 1}`, every(l))),
  );
  board.switches.replaceChildren(
    h(
      "table",
      { class: "switches" },
      h(
        "caption",
        {},
        "Heads: click to switch off or on. A number is by how many points the answer moves without that head.",
      ),
      h("thead", {}, h("tr", {}, h("td"), names)),
      h("tbody", {}, rows),
    ),
  );
}

function drawPad(inputs, cross) {
  const context = board.pad.getContext("2d");
  context.fillStyle = "#15171b";
  context.fillRect(0, 0, PAD, PAD);
  const strokes = fromText(state.ink);
  if (board.shown) {
    context.imageSmoothingEnabled = false;
    context.globalAlpha = strokes.length ? 1 : 0.85;
    context.drawImage(board.shown, 0, 0, PAD, PAD);
    context.globalAlpha = 1;
  }
  context.strokeStyle = "#fff";
  Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: (PAD * 5) / 32 });
  if (!board.shown || !strokes.length)
    for (const line of strokes) {
      context.beginPath();
      context.moveTo(line[0][0] * PAD, line[0][1] * PAD);
      for (const [x, y] of line.length > 1 ? line.slice(1) : line) context.lineTo(x * PAD, y * PAD);
      context.stroke();
    }
  if (cross) {
    Object.assign(context, { lineWidth: 2, strokeStyle: "#bddf26" });
    const [x, y] = cross.map((v) => v * PAD);
    context.beginPath();
    for (const [a, b] of [
      [8, 0],
      [0, 8],
    ]) {
      context.moveTo(x - a, y - b);
      context.lineTo(x + a, y + b);
    }
    context.stroke();
  }
}

async function update(model, net) {
  const { drawing, inputs } = report.datas[model.data];
  const shape = inputs.shape.slice(1);
  const bytes = await currentInput(model);
  const trained = await runOf(model, state.image);
  const strokes = fromText(state.ink);
  const own = strokes.length > 0 || state.ink === "-" || dropped !== null;
  const run = own || isChanged() ? forward(net, bytes, changes()) : trained;
  const below = grayOf(bytes, shape);
  paint(board.gets, {
    rows: shape[1],
    columns: shape[2],
    colour: (i) => Array(3).fill(255 * below.values[i]),
    long: 96,
  });
  board.gets.bytes = bytes;
  board.shown = state.ink === "-" || (strokes.length && drawing) ? null : board.gets;
  board.rough.textContent = dropped ? "Prepared roughly: fitted and cut." : "";
  if (state.ink.length > INK_LETTERS) board.rough.textContent = "This drawing is too long for the page's address.";
  drawPad(inputs);
  answer(run, trained, own);
  await columns(model, net, run, below);
  board.slider.value = state.lambda === null ? Math.log10(net.lambda[0] || LEAST) : Math.log10(state.lambda || LEAST);
  board.lambda.textContent = state.lambda === null ? `${net.lambda[0]}, as trained` : state.lambda;
  const { heads } = changes();
  for (const button of board.switches.querySelectorAll("td > button")) {
    const [, l, k] = button.dataset.key.split("-").map(Number);
    button.setAttribute("aria-pressed", heads.get(l)?.has(k) ?? false);
    button.setAttribute("aria-label", `head ${k + 1} of layer ${l + 1} ${heads.get(l)?.has(k) ? "off" : "on"}`);
  }
  board.changed.textContent = isChanged() ? effect(net, bytes, run) : "";
  board.run = run;
}

function answer(run, trained, own) {
  const order = [...run.scores.keys()].sort((a, b) => run.scores[b] - run.scores[a]);
  const shown = (order.length > 10 ? order.slice(0, 5) : [...order]).sort((a, b) => (order.length > 10 ? 0 : a - b));
  board.answer.replaceChildren(
    bars(
      shown.map((c) => [className(c), run.scores[c], percent(run.scores[c])]),
      { told: "live", behind: own ? shown.map((c) => trained.scores[c]) : [] },
    ),
  );
  const says = (c) => `${className(c)} (${percent(run.scores[c])})`;
  const [a, b, c] = order;
  let sentence =
    run.scores[a] >= 0.4
      ? `It says ${says(a)}, then ${says(b)}.`
      : `It is not sure: ${[a, b, c]
          .filter((k) => k !== undefined)
          .map(says)
          .join(", ")}.`;
  if (state.ink === "-" && !dropped)
    sentence = `Nothing is drawn. An empty picture is ${className(a)} to this model (${percent(run.scores[a])}): it must answer something.`;
  board.sentence.textContent = sentence;
  if (document.activeElement === board.pad) say(sentence);
}

async function columns(model, net, run, below) {
  const N = net.tokens;
  const [row, column] = patchIn(net.rows, net.columns);
  const token = state.cls ? 0 : 1 + row * net.columns + column;
  const rows = run.layers.map((steps, l) => {
    const k = Math.min(headOf(model), net.layers[l].heads - 1);
    return part(steps.attention, [net.layers[l].heads, N, N], k, token).map((value) => N * value);
  });
  const most = await scaleOf();
  board.columns.replaceChildren(
    ...run.layers.map((steps, l) => {
      const canvas = h("canvas", { "aria-hidden": "true" });
      const cells = { rows: net.rows, columns: net.columns };
      paint(canvas, { ...cells, colour: (i, v) => over(strength(rows[l][1 + i], most), v), below, long: 96 });
      if (token) ring(canvas, token - 1, cells);
      const rate = layerRates(net, net.layers[l], steps, report.run.settings.eps_squared).after;
      const left = reasons(steps).left;
      const label = `layer ${l + 1}: Rᶜ ${short(rate)}, ${percent(left)} left`;
      return h(
        "button",
        {
          type: "button",
          "data-key": `column-${l}`,
          "aria-pressed": l === state.layer,
          "aria-label": label,
          onclick: () => choose({ layer: l }),
        },
        canvas,
        h("span", {}, `layer ${l + 1}`),
        h("span", {}, `Rᶜ ${short(rate)}`),
        h("span", {}, `${percent(left)} left`),
      );
    }),
  );
}

// What the changes do to this input.
function effect(net, bytes, run) {
  const before = forward(net, bytes);
  const [c, c2] = [best(before.scores), best(run.scores)];
  const words = changeWords(net);
  const what = [
    ...(words.length ? [`Without ${words.join(" and ")}`] : []),
    ...(state.lambda === null ? [] : [`${words.length ? "w" : "W"}ith lambda ${state.lambda}`]),
  ].join(", ");
  if (!what) return "What this link switches off is not in this model.";
  const moved = Math.max(...run.scores.map((value, i) => Math.abs(value - before.scores[i])));
  if (c !== c2)
    return `${what}, the answer turns from ${className(c)} (${percent(before.scores[c])}) to ${className(c2)} (${percent(run.scores[c2])}).`;
  if (moved < 0.005)
    return `${what}, nothing moves by half a point: ${className(c)} stays at ${percent(before.scores[c])}.`;
  const [p, q] = twoPercents(before.scores[c], run.scores[c]);
  return `${what}, ${className(c)} goes from ${p} to ${q}; the answer stays.`;
}

const best = (scores) => scores.indexOf(Math.max(...scores));

let effectOnShown = {}; // of the last changes: {made, others}

// What the changes do to the images shown: after all else, and given up (false) while something else waits.
export async function renderEffect(_, waits) {
  const model = report.models[state.a];
  if (!model.running || !board || !isChanged()) return true;
  const [net, made] = [await netOf(model), [state.off, state.lambda, state.a].join()];
  if (effectOnShown.made !== made) {
    let others = 0;
    for (const i of report.images.keys()) {
      await pause();
      if (waits()) return false;
      const now = forward(net, await inputOf(model, i), changes());
      if (best((await runOf(model, i)).scores) !== best(now.scores)) others++;
    }
    effectOnShown = { made, others };
  }
  const { others } = effectOnShown;
  const images = countOf(report.images.length, "image");
  board.changed.append(
    ` Of the ${images} shown, ${others} get${others === 1 ? "s" : ""} another answer. Nothing is retrained.`,
  );
  return true;
}

const MOST_HEADS = 24; // that are tried each; of a model with more, those of the chosen layer

// By how much each head moves the answer, switched off alone: in its cell, and the one that matters most in words.
export async function renderHeads(_, waits) {
  const model = report.models[state.a];
  if (!model.running || !board?.run) return true;
  const [net, { run, gets }, tried] = [await netOf(model), board, []];
  const all = net.layers.reduce((sum, { heads }) => sum + heads, 0) <= MOST_HEADS;
  if (board.tried === run && board.triedLayer === state.layer) return true;
  const answered = best(run.scores);
  for (const button of board.switches.querySelectorAll("td > button")) {
    const [, l, k] = button.dataset.key.split("-").map(Number);
    button.textContent = "";
    if ((!all && l !== state.layer) || changes().heads.get(l)?.has(k)) continue;
    await pause();
    if (waits()) return false;
    const { scores } = forward(net, gets.bytes, changes([state.off, `h${l + 1}.${k + 1}`].filter(Boolean).join()));
    const points = 100 * (scores[answered] - run.scores[answered]);
    button.textContent = Math.abs(points) < 0.05 ? "0" : `${points < 0 ? "\u2212" : "+"}${Math.abs(points).toFixed(1)}`;
    tried.push({ l, k, points, scores });
  }
  board.matters.textContent = mattersWords(tried, run.scores, answered);
  Object.assign(board, { tried: run, triedLayer: state.layer });
  return true;
}

function mattersWords(tried, scores, answered) {
  const one = (heads) => {
    if (!heads.length) return null;
    const most = heads.reduce((a, b) => (Math.abs(b.points) > Math.abs(a.points) ? b : a));
    const [from, to] = twoPercents(scores[answered], most.scores[answered]);
    const turned = best(most.scores);
    const turns = turned === answered ? "" : `, and the answer turns to ${className(turned)}`;
    return { ...most, words: `without it ${className(answered)} goes from ${from} to ${to}${turns}` };
  };
  const [most, here] = [one(tried), one(tried.filter(({ l }) => l === state.layer))];
  const all = tried.some(({ l }) => l !== state.layer);
  const sentences = [];
  if (all && Math.abs(most.points) < 0.5) return "Here no head alone moves the answer by half a point.";
  if (all) sentences.push(`Here head ${most.k + 1} of layer ${most.l + 1} matters most: ${most.words}.`);
  if (here && Math.abs(here.points) < 0.5)
    sentences.push(`In layer ${state.layer + 1} no head alone moves it by half a point.`);
  else if (here && (!all || here.l !== most.l || here.k !== most.k))
    sentences.push(`In layer ${state.layer + 1} head ${here.k + 1} matters most: ${here.words}.`);
  return sentences.join(" ");
}

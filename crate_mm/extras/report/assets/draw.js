// The model runs here: on a drawing, a picture or a shown image, with lambda changed and parts switched off.

import { changes, changeWords, isChanged, toggled } from "./changes.js";
import { grayOf, GROUND, paint } from "./colour.js";
import { className, report } from "./data.js";
import { bars, button, buttons, div, h, note, pause, reveal, say, says, select } from "./dom.js";
import { attentionMap } from "./heat.js";
import { layerColumns } from "./layer.js";
import { countOf, percent, twoPercents } from "./numbers.js";
import { forward } from "./model.js";
import { brushed, digits8, enlarge, fromPicture, fromText, GLYPHS, toText } from "./pixels.js";
import { choose, headOf, INK_LETTERS, state } from "./state.js";
import { attentionRows, inputOf, netOf, runOf } from "./views.js";

const PAD = 320; // pixels of the pad
const LEAST = 1e-3; // of lambda's slider, which is logarithmic to 10; below it lambda is 0
const PEN_STYLE = { lineCap: "round", lineJoin: "round", lineWidth: (PAD * 5) / 32, strokeStyle: "#fff" };

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
  if (board?.model !== model || !body.contains(board.root)) {
    build(model, net);
    body.replaceChildren(board.root);
  }
  await update(model, net);
}

// The bytes that the model gets now.
async function currentInput(model) {
  const { drawing, inputs } = report.datas[model.data];
  const [, , height, width] = inputs.shape;
  const strokes = fromText(state.ink);
  if (droppedOn !== state.image) dropped = null;
  if (dropped) return dropped;
  const image = await inputOf(model);
  if (!strokes.length) return state.ink === "-" ? new Uint8Array(image.length) : image;
  if (!drawing) return brushed(image, strokes, inputs.shape.slice(1), shade);
  const bytes = digits8(strokes, centred);
  return drawing.times === 1 ? bytes : enlarge(bytes, height / drawing.times, width / drawing.times, drawing.times);
}

// Draw something else: strokes as text, "-" for nothing, or "" for the chosen image.
function setInk(ink) {
  dropped = null;
  choose({ ink });
}

function undo() {
  choose({ ink: toText(fromText(state.ink).slice(0, -1)) || "-" });
}

// How a digit is drawn, or how one draws on a picture.
function tools(drawing, inputs) {
  if (drawing) {
    const digits = [["", "load a digit"], ...GLYPHS.map((_, n) => [n, n])];
    const centre = h("input", { type: "checkbox", checked: true, "data-key": "centre" });
    centre.addEventListener("change", () => ((centred = centre.checked), choose({ ink: state.ink })));
    const glyph = select("glyph", "draw one of the digits", digits, "", (n) => setInk(n && toText(GLYPHS[n])));
    return [glyph, h("label", {}, centre, " center it")];
  }
  const shades = Object.entries({ 255: "white", 128: "gray", 0: "black" });
  const brush = select("brush", null, shades, shade, (value) => (shade = Number(value)));
  const file = h("input", { type: "file", accept: "image/*", "data-key": "file" });
  file.addEventListener("change", () => drop(file.files[0], inputs));
  return [h("label", {}, "brush ", brush), h("label", {}, "a picture of yours ", file)];
}

function build(model, net) {
  const { drawing, inputs } = report.datas[model.data];
  const name = "drawing pad; arrow keys move, space draws a line to the place, u undoes";
  const of = { class: "pad", width: PAD, height: PAD, tabindex: 0, role: "application", "aria-label": name };
  const pad = h("canvas", { "data-key": "pad", ...of });
  const gets = h("canvas", { class: "gets", role: "img", "aria-label": "what the model gets" });
  const slider = h("input", { type: "range", min: -3, max: 1, step: 0.05, "data-key": "lambda" });
  slider.addEventListener("input", () =>
    choose({ lambda: slider.value <= -3 ? 0 : Number((10 ** slider.value).toPrecision(2)) }),
  );
  board = {
    ...{ model, pad, gets, slider, root: div(null) },
    ...{ answer: div(null), columns: div(null), rough: note(""), lambda: h("output") },
    ...{ sentence: says("answer"), changed: says("changed"), matters: says("matters") },
    switches: h("div", { class: "scroll", "data-scroll": "switches" }, switchboard(net)),
  };
  const head = (text) => h("h4", {}, text);
  const keys = [
    button("undo", "Undo", undo),
    button("clear", "Clear", () => setInk("-")),
    button("put", "Put the chosen image here", () => setInk("")),
  ];
  const trained = button("trained", "As trained", () => choose({ lambda: null, off: "" }));
  board.root.append(
    div(
      "drawing",
      div("pen", pad, div(null, buttons(keys), buttons(tools(drawing, inputs)))),
      div("given", head("What the model gets"), gets, board.rough),
      div("answers", head("Its answer"), board.answer, board.sentence),
    ),
    div(
      net.layers.length > 5 ? null : "halves",
      div(null, head("Each layer: where the chosen token looks, Rᶜ after compression, entries left"), board.columns),
      h(
        "details",
        { open: innerWidth > 640 || isChanged() },
        h("summary", {}, "Change the model: lambda and heads"),
        buttons(h("label", {}, "lambda ", slider, " ", board.lambda), trained),
        note(
          "Heads: click to switch off or on. The number is the change of the answer without this head, in percentage points.",
        ),
        board.switches,
        board.matters,
      ),
    ),
    board.changed,
  );
  listen(pad, inputs);
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
  const inside = (v) => Math.min(Math.max(v, 0), 1);
  let line = null;
  let cross = [0.5, 0.5];
  const at = ({ clientX, clientY }) => {
    const { left, top, width, height } = pad.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height].map(inside);
  };
  const add = (point, start) => {
    const strokes = fromText(state.ink);
    if (start || !strokes.length) strokes.push([point]);
    else strokes.at(-1).push(point);
    setInk(toText(strokes));
  };
  pad.addEventListener("pointerdown", (event) => {
    line = at(event);
    pad.setPointerCapture(event.pointerId);
    add(line, true);
  });
  pad.addEventListener("pointermove", (event) => {
    const next = at(event);
    if (!line || Math.hypot(next[0] - line[0], next[1] - line[1]) < 0.02) return;
    line = next;
    add(line, false);
  });
  for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => (line = null));
  pad.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (by) cross = cross.map((v, i) => inside(v + by[i] / 16));
    else if (event.key === " ") add(cross, event.shiftKey);
    else if (event.key === "u") return undo();
    else return;
    event.preventDefault();
    drawPad(cross);
  });
  pad.addEventListener("dragover", (event) => event.preventDefault());
  pad.addEventListener("drop", (event) => {
    event.preventDefault();
    drop(event.dataTransfer.files[0], inputs);
  });
}

// The heads of all layers as switches: a cell is a head, a name is all of its row or column.
function switchboard({ layers }) {
  const flip = (key, text, parts) => button(key, text, () => choose({ off: toggled(parts) }));
  const all = layers.flatMap(({ heads }, l) => Array.from({ length: heads }, (_, k) => ["h", l, k]));
  const rows = Array.from({ length: Math.max(...layers.map(({ heads }) => heads)) }, (_, k) => {
    const row = all.filter((part) => part[2] === k);
    const cells = layers.map(({ heads }, l) => h("td", {}, k < heads && flip(`off-${l}-${k}`, "", [["h", l, k]])));
    return h("tr", {}, h("th", { scope: "row" }, flip(`off-row-${k}`, `head ${k + 1}`, row)), cells);
  });
  const names = layers.map((_, l) => {
    const column = all.filter((part) => part[1] === l);
    return h("th", { scope: "col" }, flip(`off-layer-${l}`, `layer ${l + 1}`, column));
  });
  const head = h("thead", {}, h("tr", {}, h("td"), names));
  return h("table", { class: "switches", "aria-label": "heads" }, head, h("tbody", {}, rows));
}

// The buttons of the heads: [button, layer, head].
function switches() {
  const cells = [...board.switches.querySelectorAll("td > button")];
  return cells.map((cell) => [cell, ...cell.dataset.key.split("-").slice(1).map(Number)]);
}

function drawPad(cross = null) {
  const context = board.pad.getContext("2d");
  const drawLine = (points) => {
    context.beginPath();
    points.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * PAD, y * PAD));
    context.stroke();
  };
  Object.assign(context, PEN_STYLE, { fillStyle: `rgb(${GROUND})`, imageSmoothingEnabled: false });
  context.fillRect(0, 0, PAD, PAD);
  if (board.onImage) context.drawImage(board.gets, 0, 0, PAD, PAD);
  else for (const line of fromText(state.ink)) drawLine(line.length > 1 ? line : [...line, ...line]);
  if (!cross) return;
  const [x, y] = cross.map((v) => v * PAD);
  context.fillStyle = "#bddf26";
  context.fillRect(x - 8, y - 1, 16, 2);
  context.fillRect(x - 1, y - 8, 2, 16);
}

async function update(model, net) {
  const { drawing, inputs } = report.datas[model.data];
  const [, channels, rows, columns] = inputs.shape;
  const bytes = await currentInput(model);
  const trained = await runOf(model);
  const drawn = state.ink === "-" || fromText(state.ink).length > 0;
  const own = drawn || dropped !== null;
  const run = own || isChanged() ? forward(net, bytes, changes()) : trained;
  const below = grayOf(bytes, [channels, rows, columns]);
  paint(board.gets, { rows, columns, colour: (i) => Array(3).fill(255 * below.values[i]), long: 96 });
  board.gets.bytes = bytes;
  board.onImage = !drawn || (!drawing && state.ink !== "-");
  board.rough.textContent = dropped ? "Prepared roughly: fitted and cut." : "";
  if (state.ink.length > INK_LETTERS) board.rough.textContent = "This drawing is too long for the page's address.";
  drawPad();
  answer(run, trained, own);
  const maps = await Promise.all(net.layers.map((_, l) => attentionRows(model, l, run)));
  const map = (l) => attentionMap(maps[l], Math.min(headOf(model), net.layers[l].heads - 1), below, 96);
  board.columns.replaceChildren(layerColumns("column", net, run, map));
  const lambda = state.lambda ?? net.lambda[0];
  board.slider.value = Math.log10(lambda || LEAST);
  board.lambda.textContent = state.lambda === null ? `${lambda}, as trained` : lambda;
  const { heads } = changes();
  for (const [cell, l, k] of switches()) {
    const off = heads.get(l)?.has(k) ?? false;
    cell.setAttribute("aria-pressed", off);
    cell.setAttribute("aria-label", `head ${k + 1} of layer ${l + 1} ${off ? "off" : "on"}`);
  }
  const here = board.switches.querySelector(`[data-key="off-layer-${state.layer}"]`);
  if (board.layer !== state.layer) reveal(board.switches, here);
  board.layer = state.layer;
  board.changed.textContent = isChanged() ? effect(net, bytes, run) : "";
  board.run = run;
}

function answer(run, trained, own) {
  const order = [...run.scores.keys()].sort((a, b) => run.scores[b] - run.scores[a]);
  const shown = order.length > 10 ? order.slice(0, 5) : [...run.scores.keys()];
  const rows = shown.map((c) => [className(c), run.scores[c], percent(run.scores[c])]);
  board.answer.replaceChildren(bars(rows, { told: "live", behind: own ? shown.map((c) => trained.scores[c]) : [] }));
  const [a, b, c] = order.map((k) => `${className(k)} (${percent(run.scores[k])})`);
  let sentence = `It says ${a}, then ${b}.${own ? " Thin lines: the chosen image." : ""}`;
  if (run.scores[order[0]] < 0.4) sentence = `It is not sure: ${[a, b, c].filter(Boolean).join(", ")}.`;
  if (state.ink === "-" && !dropped)
    sentence = `Nothing is drawn. An empty picture is ${a} to this model: it must answer something.`;
  board.sentence.textContent = sentence;
  if (document.activeElement === board.pad) say(sentence);
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
  const [name, from] = [className(c), percent(before.scores[c])];
  if (c !== c2)
    return `${what}, the answer turns from ${name} (${from}) to ${className(c2)} (${percent(run.scores[c2])}).`;
  if (moved < 0.005) return `${what}, nothing moves by half a point: ${name} stays at ${from}.`;
  return `${what}, ${name} goes from ${twoPercents(before.scores[c], run.scores[c]).join(" to ")}; the answer stays.`;
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
  if (board.tried === run && (all || board.triedLayer === state.layer)) return true;
  const answered = best(run.scores);
  for (const [cell, l, k] of switches()) {
    cell.textContent = "";
    if ((!all && l !== state.layer) || changes().heads.get(l)?.has(k)) continue;
    await pause();
    if (waits()) return false;
    const { scores } = forward(net, gets.bytes, changes([state.off, `h${l + 1}.${k + 1}`].filter(Boolean).join()));
    const points = 100 * (scores[answered] - run.scores[answered]);
    cell.textContent = Math.abs(points) < 0.05 ? "0" : `${points < 0 ? "\u2212" : "+"}${Math.abs(points).toFixed(1)}`;
    tried.push({ l, k, points, scores });
  }
  board.matters.textContent = mattersWords(tried, run.scores, answered);
  Object.assign(board, { tried: run, triedLayer: state.layer });
  return true;
}

// Which head moves the answer most, of all heads that were tried.
function mattersWords(tried, scores, answered) {
  if (!tried.length) return "";
  const most = tried.reduce((a, b) => (Math.abs(b.points) > Math.abs(a.points) ? b : a));
  const where = tried.some(({ l }) => l !== most.l) ? "Here" : `In layer ${most.l + 1}`;
  if (Math.abs(most.points) < 0.5) return `${where} no head alone moves the answer by half a point.`;
  const [from, to] = twoPercents(scores[answered], most.scores[answered]);
  const turned = best(most.scores);
  const turns = turned === answered ? "" : `, and the answer turns to ${className(turned)}`;
  const which = where === "Here" ? `head ${most.k + 1} of layer ${most.l + 1}` : `head ${most.k + 1}`;
  return `${where} ${which} matters most: without it ${className(answered)} goes from ${from} to ${to}${turns}.`;
}

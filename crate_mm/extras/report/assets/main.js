// The page: the bar of choices, and the sections. A section is redrawn when a choice that it depends on changes.

import { renderCompare } from "./compare.js";
import { gunzip, headsOf, report } from "./data.js";
import { dot } from "./charts.js";
import { frame, h, pause, reveal } from "./dom.js";
import { countOf, percent } from "./numbers.js";
import { renderDirections } from "./directions.js";
import { renderDraw, renderEffect, renderHeads } from "./draw.js";
import { grayBelow } from "./heat.js";
import { renderImage } from "./image.js";
import { renderLayer } from "./layer.js";
import { codingRate, forward, layerRates, loadNet, reasons } from "./model.js";
import { renderObjective } from "./objective.js";
import { digits8, enlarge } from "./pixels.js";
import { renderRun } from "./run.js";
import { renderSegments } from "./segments.js";
import { SENTENCES, verdict } from "./sentences.js";
import { choose, depthOf, ignored, mostOf, onChoice, openAt, state, untrainedModel } from "./state.js";
import { renderSubspaces } from "./subspaces.js";
import { attentionRows, runOf, spreadOf } from "./views.js";
import { explainWords } from "./words.js";

const PLACE = ["image", "layer", "head", "y", "x", "cls"];
const CHANGED = ["a", "image", "lambda", "off", "ink"];
// The sections: id, function, and the choices on which each depends.
const SECTIONS = [
  ["layer", renderLayer, ["a", ...PLACE, "step"]],
  ["draw", renderDraw, [...CHANGED, ...PLACE]],
  ["look", renderImage, ["a", "b", ...PLACE]],
  ["directions", renderDirections, ["a", "layer", "direction", "off"]],
  ["objective", renderObjective, ["a", "b", "layer", "measure"]],
  ["compare", renderCompare, ["a", "b", ...PLACE]],
  ["subspaces", renderSubspaces, ["a", "b", "layer"]],
  ["segments", renderSegments, ["a", "b", "image", "layer", "head"]],
  ["run", renderRun, []],
  ["effect", renderEffect, CHANGED],
  ["heads", renderHeads, [...CHANGED, "layer"]],
];

const field = (id) => document.getElementById(id);
const IDLE = new Set(["effect", "heads"]); // what is computed when nothing else waits
const waiting = new Set(SECTIONS.map(([id]) => id));
let near = []; // sections that were in the window when the last choice was made: to ask again lays the page out again
let drawing = false;
let arriving = state.section !== null;
for (const kind of ["wheel", "pointerdown", "keydown"]) addEventListener(kind, () => (arriving = false));

// The sections in the window, first that which fills most of it; at the start those at the top.
function findNear() {
  const boxes = SECTIONS.map(([id]) => ({ id, box: field(id)?.getBoundingClientRect() })).filter(({ box }) => box);
  const seen = ({ box }) => Math.min(box.bottom, innerHeight) - Math.max(box.top, 0);
  const shown = boxes.filter((entry) => seen(entry) > 0).sort((a, b) => seen(b) - seen(a));
  near = shown.map(({ id }) => id);
}

// Draw the waiting sections one after the other, near ones first. Between them the browser shows what is drawn and
// handles input. At the start the page is scrolled to the section that the address names, until one scrolls oneself.
async function drawAll() {
  if (drawing) return;
  drawing = true;
  document.body.setAttribute("aria-busy", "true");
  while (waiting.size) {
    const able = SECTIONS.filter(([id]) => waiting.has(id));
    const next = near.find((id) => waiting.has(id)) ?? able[0][0];
    const [id, render] = able.find(([name]) => name === next);
    waiting.delete(id);
    if ((await drawSection(id, render)) === false) waiting.add(id);
    if (arriving) field(state.section)?.scrollIntoView({ behavior: "instant" });
    await (near.includes(id) ? frame() : pause());
  }
  drawing = arriving = false;
  document.body.setAttribute("aria-busy", "false");
  computeAhead();
}

// The forward passes of the other images, so that one that is chosen is shown at once. Any drawing ends it.
async function computeAhead() {
  const model = report.models[state.a];
  for (const i of model.running ? report.images.keys() : []) {
    await pause();
    if (drawing) return;
    await runOf(model, i);
  }
}

// Draw a section; the focus and what is scrolled sideways stay. One that fails shows its error and affects no other.
async function drawSection(id, render) {
  const body = document.querySelector(`#${id} > .body`) ?? document.createElement("div");
  const focus = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const rows = () => [...body.querySelectorAll("[data-scroll]")];
  const chosenIn = (row) => row.querySelector('[aria-pressed="true"]');
  const before = new Map(rows().map((row) => [row.dataset.scroll, [row.scrollLeft, chosenIn(row)?.dataset.key]]));
  try {
    return await render(body, () => [...waiting].some((name) => !IDLE.has(name)));
  } catch (error) {
    console.error(error);
    const sentence = `This section could not be drawn (${error.message}). The others are not affected.`;
    body.replaceChildren(h("p", { class: "none" }, sentence));
  } finally {
    for (const row of rows()) {
      const [left, key] = before.get(row.dataset.scroll) ?? [0, null];
      if (left) row.scrollLeft = left;
      if (chosenIn(row) && chosenIn(row).dataset.key !== key) reveal(row, chosenIn(row));
    }
    if (focus) body.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
  return true;
}

function fill(list, texts) {
  list.replaceChildren(...texts.map((text, value) => h("option", { value }, text)));
}

function bar() {
  fill(
    field("image-choice"),
    report.images.map(({ name }, i) => `${i + 1}: ${name}`),
  );
  for (const name of ["image", "head"])
    field(`${name}-choice`).addEventListener("change", ({ target }) => choose({ [name]: Number(target.value) }));
  const goTo = (layer) => choose({ layer: Math.min(Math.max(layer, 0), mostOf(depthOf) - 1) });
  field("layer-choice").addEventListener("input", ({ target }) => goTo(target.value - 1));
  field("layer-less").addEventListener("click", () => goTo(state.layer - 1));
  field("layer-more").addEventListener("click", () => goTo(state.layer + 1));
  for (const [name, other] of ["ab", "ba"]) {
    const list = field(`${name}-choice`);
    fill(
      list,
      report.models.map(({ label }) => label),
    );
    if (name === "b") list.append(h("option", { value: "" }, "no other model"));
    list.addEventListener("change", () => {
      const chosen = list.value === "" ? null : Number(list.value);
      choose({ [name]: chosen, ...(chosen === state[other] ? { [other]: state[name] } : {}) });
    });
    field(`${name}-label`).hidden = report.models.length < 2;
  }
}

function showChoice() {
  const depth = mostOf(depthOf);
  const [layer, head] = [field("layer-choice"), field("head-choice")];
  const heads = Array.from({ length: mostOf(headsOf) }, (_, k) => k + 1);
  if (head.length !== heads.length) fill(head, heads);
  Object.assign(layer, { max: depth, value: state.layer + 1 });
  field("layer-number").textContent = `${state.layer + 1} of ${depth}`;
  for (const name of ["image", "head", "a", "b"]) field(`${name}-choice`).value = state[name] ?? "";
}

// The models, and the verdict of A.
function models() {
  const items = report.models.map((model, i) => {
    const right = model.predicted && model.labelled ? `, ${percent(model.right / model.labelled)} right` : "";
    const lacks = [...new Set(Object.values(model.undefined))].map((reason) => ` ${reason}`).join("");
    const about = `${model.name}, ${countOf(model.layers.length, "layer")}${model.untrained ? ", untrained" : ""}${right}${lacks && "."}${lacks}`;
    return h("li", {}, dot(i), h("span", {}, model.label, " ", h("small", {}, about)));
  });
  field("models").replaceChildren(...items);
  const sentences = verdict(report.models[state.a], untrainedModel(), report.classes?.length ?? 0);
  field("verdict").textContent = sentences.join(" ");
}

function warn() {
  field("ignored")?.remove();
  if (!ignored.length) return;
  const names = [...new Set(ignored)].join(", ");
  const sentence = `This link's ${names} could not be used on this page and was left out.`;
  field("models").before(h("p", { class: "warning", id: "ignored" }, sentence));
}

onChoice((changed) => {
  if (changed.includes("a") || changed.includes("b")) models();
  for (const [id, , needs] of SECTIONS) if (needs.some((name) => changed.includes(name))) waiting.add(id);
  findNear();
  showChoice();
  drawAll();
});
addEventListener("popstate", warn);
// Print shows what is folded.
matchMedia("print").addEventListener("change", ({ matches }) => {
  for (const box of document.querySelectorAll("details")) {
    if (matches) box.dataset.was = box.open;
    box.open = matches || box.dataset.was === "true";
  }
});

// The opening token is the patch whose pixels vary most, the opening head that which looks at the fewest tokens from it.
async function openWhereItIsInteresting() {
  const model = report.models[state.a];
  if (!model.grid) return;
  const [, rows, columns] = model.grid;
  const { values, width, height } = await grayBelow(model);
  const patches = Array.from({ length: rows * columns }, () => []);
  values.forEach((v, i) => {
    const [y, x] = [Math.floor(i / width) / height, (i % width) / width];
    patches[Math.floor(y * rows) * columns + Math.floor(x * columns)].push(v);
  });
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  const varies = patches.map((patch) => mean(patch.map((v) => v * v)) - mean(patch) ** 2);
  const most = varies.indexOf(Math.max(...varies));
  openAt({ y: (Math.floor(most / columns) + 0.5) / rows, x: ((most % columns) + 0.5) / columns });
  const maps = await attentionRows(model);
  if (!maps) return;
  const spreads = maps.heads.map((_, k) => spreadOf(maps, k).spread);
  openAt({ head: spreads.indexOf(Math.min(...spreads)) });
}

warn();
models();
explainWords();
bar();
try {
  await openWhereItIsInteresting();
} catch (error) {
  console.error(error); // damaged weights: the sections say it
}
showChoice();
if (arriving) field(state.section).scrollIntoView({ behavior: "instant" });
findNear();
drawAll();
// For tests.
window.crateReport = {
  codingRate,
  digits8,
  enlarge,
  forward,
  gunzip,
  layerRates,
  loadNet,
  reasons,
  report,
  sentences: SENTENCES,
};

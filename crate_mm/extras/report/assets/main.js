// The page: the bar of choices, and the sections. A section is redrawn when a choice that it depends on changes.

import { compareNeeds, renderCompare } from "./compare.js";
import { gunzip, headsOf, report } from "./data.js";
import { dot, pause } from "./dom.js";
import { h } from "./element.js";
import { countOf, percent } from "./numbers.js";
import { directionsNeeds, renderDirections } from "./directions.js";
import { drawNeeds, renderDraw, renderEffect, renderHeads } from "./draw.js";
import { imageNeeds, renderImage } from "./image.js";
import { layerNeeds, renderLayer } from "./layer.js";
import { codingRate, forward, layerRates, loadNet, reasons } from "./model.js";
import { objectiveNeeds, renderObjective } from "./objective.js";
import { digits8, enlarge } from "./pixels.js";
import { renderRun, runNeeds } from "./run.js";
import { renderSegments, segmentsNeeds } from "./segments.js";
import { SENTENCES, verdict } from "./sentences.js";
import { choose, depthOf, ignored, mostOf, onChoice, state, untrainedModel } from "./state.js";
import { renderSubspaces, subspacesNeeds } from "./subspaces.js";
import { explainWords } from "./words.js";

const SECTIONS = [
  ["layer", renderLayer, layerNeeds],
  ["draw", renderDraw, drawNeeds],
  ["look", renderImage, imageNeeds],
  ["directions", renderDirections, directionsNeeds],
  ["objective", renderObjective, objectiveNeeds],
  ["compare", renderCompare, compareNeeds],
  ["subspaces", renderSubspaces, subspacesNeeds],
  ["segments", renderSegments, segmentsNeeds],
  ["run", renderRun, runNeeds],
  ["effect", renderEffect, drawNeeds],
  ["heads", renderHeads, drawNeeds],
];

const IDLE = new Set(["effect", "heads"]); // what is computed when nothing else waits
const waiting = new Set(SECTIONS.map(([id]) => id));
let near = new Set(); // sections that were near when the last choice was made: to ask again lays the page out again
let drawing = false;

// The sections in the window; at first those at the top.
function findNear() {
  const places = SECTIONS.map(([id]) => [id, document.getElementById(id)?.getBoundingClientRect()]);
  near = new Set(places.filter(([, box]) => box && box.top < innerHeight && box.bottom > 0).map(([id]) => id));
}

// Draw the waiting sections one after the other, near ones first, then those that wait meanwhile. Between them the
// browser shows what is drawn and handles input.
async function drawAll() {
  if (drawing) return;
  drawing = true;
  document.body.setAttribute("aria-busy", "true");
  while (waiting.size) {
    const able = SECTIONS.filter(([id]) => waiting.has(id));
    const [id, render] = able.find(([name]) => near.has(name)) ?? able[0];
    waiting.delete(id);
    if ((await drawSection(id, render)) === false) waiting.add(id);
    await pause();
  }
  drawing = false;
  document.body.setAttribute("aria-busy", "false");
}

// Draw a section; the focus and what is scrolled sideways stay. One that fails shows its error and affects no other.
async function drawSection(id, render) {
  const body = document.querySelector(`#${id} > .body`) ?? document.createElement("div");
  const focus = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const scrolled = [...body.querySelectorAll("[data-scroll]")].map((e) => [e.dataset.scroll, e.scrollLeft]);
  try {
    return await render(body, () => [...waiting].some((name) => !IDLE.has(name)));
  } catch (error) {
    console.error(error);
    const sentence = `This section could not be drawn (${error.message}). The others are not affected.`;
    body.replaceChildren(h("p", { class: "none" }, sentence));
  } finally {
    const lefts = new Map(scrolled);
    for (const element of body.querySelectorAll("[data-scroll]"))
      if (lefts.get(element.dataset.scroll)) element.scrollLeft = lefts.get(element.dataset.scroll);
      else reveal(element);
    if (focus) body.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
  return true;
}

// Scroll a row sideways to what is chosen in it, and nothing else: scrollIntoView would also scroll the page.
function reveal(row) {
  const chosen = row.querySelector('[aria-pressed="true"]')?.getBoundingClientRect();
  const { left, right } = row.getBoundingClientRect();
  if (chosen && chosen.right > right) row.scrollLeft += (chosen.left + chosen.right - left - right) / 2;
}

function bar() {
  const image = document.getElementById("image-choice");
  image.replaceChildren(...report.images.map(({ name }, i) => h("option", { value: i }, `${i + 1}: ${name}`)));
  image.addEventListener("change", () => choose({ image: Number(image.value) }));
  const layer = document.getElementById("layer-choice");
  layer.addEventListener("input", () => choose({ layer: Number(layer.value) - 1 }));
  for (const [id, by] of [
    ["layer-less", -1],
    ["layer-more", 1],
  ])
    document
      .getElementById(id)
      .addEventListener("click", () => choose({ layer: Math.min(Math.max(state.layer + by, 0), mostOf(depthOf) - 1) }));
  const head = document.getElementById("head-choice");
  head.addEventListener("change", () => choose({ head: Number(head.value) }));
  for (const name of ["a", "b"]) {
    const select = document.getElementById(`${name}-choice`);
    const options = report.models.map(({ label }, i) => h("option", { value: i }, label));
    if (name === "b") options.push(h("option", { value: "" }, "no other model"));
    select.replaceChildren(...options);
    select.addEventListener("change", () => {
      const chosen = select.value === "" ? null : Number(select.value);
      const other = name === "a" ? "b" : "a";
      choose({ [name]: chosen, ...(chosen === state[other] ? { [other]: state[name] } : {}) });
    });
  }
  for (const id of ["a-label", "b-label"]) document.getElementById(id).hidden = report.models.length < 2;
}

function showChoice() {
  const depth = mostOf(depthOf);
  document.getElementById("image-choice").value = state.image;
  const layer = document.getElementById("layer-choice");
  layer.max = depth;
  layer.value = state.layer + 1;
  document.getElementById("layer-number").textContent = `${state.layer + 1} of ${depth}`;
  const head = document.getElementById("head-choice");
  head.replaceChildren(...Array.from({ length: mostOf(headsOf) }, (_, k) => h("option", { value: k }, k + 1)));
  head.value = state.head;
  document.getElementById("a-choice").value = state.a;
  document.getElementById("b-choice").value = state.b ?? "";
  const sentences = verdict(report.models[state.a], untrainedModel(), report.classes?.length ?? 0);
  document.getElementById("verdict").textContent = sentences.join(" ");
}

function models() {
  const items = report.models.map((model, i) => {
    const right = model.predicted && model.labelled ? `, ${percent(model.right / model.labelled)} right` : "";
    const lacks = [...new Set(Object.values(model.undefined))].map((reason) => ` ${reason}`).join("");
    const about = `${model.name}, ${countOf(model.layers.length, "layer")}${right}${lacks && "."}${lacks}`;
    return h("li", {}, dot(i), h("span", {}, model.label, " ", h("small", {}, about)));
  });
  document.getElementById("models").replaceChildren(...items);
}

function warn() {
  document.getElementById("ignored")?.remove();
  if (!ignored.length) return;
  const names = [...new Set(ignored)].join(", ");
  const sentence = `This link's ${names} could not be used on this page and was left out.`;
  document.getElementById("models").before(h("p", { class: "warning", id: "ignored" }, sentence));
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
warn();
models();
explainWords();
bar();
showChoice();
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

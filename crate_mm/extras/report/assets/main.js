// The page: the bar of choices, and the sections. A section is redrawn when a choice that it depends on changes.

import { compareNeeds, renderCompare } from "./compare.js";
import { gunzip, mostHeads, report } from "./data.js";
import { h, mark, percent } from "./dom.js";
import { directionsNeeds, renderDirections } from "./directions.js";
import { drawNeeds, renderDraw } from "./draw.js";
import { imageNeeds, renderImage } from "./image.js";
import { layerNeeds, renderLayer } from "./layer.js";
import { codingRate, forward, layerRates, loadNet, reasons } from "./model.js";
import { objectiveNeeds, renderObjective } from "./objective.js";
import { digits8, enlarge } from "./pixels.js";
import { renderRun, runNeeds } from "./run.js";
import { renderSegments, segmentsNeeds } from "./segments.js";
import {
  againstUntrained,
  attentionSentence,
  counts,
  directionSentence,
  entriesSentence,
  headsSentence,
  mapsSentence,
  measureSentences,
  objectiveSentence,
  rateSentence,
  rightSentence,
  shapeOf,
  stepsSentence,
  subspacesSentence,
  verdict,
  wholeRateSentence,
} from "./sentences.js";
import { choose, ignored, onChoice, state, untrainedModel } from "./state.js";
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
];

const waiting = new Set(SECTIONS.map(([id]) => id));
let drawing = false;

// Draw the waiting sections one after the other, then those that wait meanwhile. A section that fails shows its error;
// the others are not affected.
async function drawAll() {
  if (drawing) return;
  drawing = true;
  document.body.setAttribute("aria-busy", "true");
  while (waiting.size) {
    const [id, render] = SECTIONS.find(([name]) => waiting.has(name));
    waiting.delete(id);
    const body = document.querySelector(`#${id} > .body`);
    const focus = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    try {
      await render(body);
    } catch (error) {
      console.error(error);
      const sentence = `This section could not be drawn (${error.message}). The others are not affected.`;
      body.replaceChildren(h("p", { class: "none" }, sentence));
    }
    if (focus) body.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
  drawing = false;
  document.body.setAttribute("aria-busy", "false");
}

function bar() {
  const image = document.getElementById("image-choice");
  image.replaceChildren(...report.images.map(({ name }, i) => h("option", { value: i }, `${i + 1}: ${name}`)));
  image.addEventListener("change", () => choose({ image: Number(image.value) }));
  const layer = document.getElementById("layer-choice");
  layer.addEventListener("input", () => choose({ layer: Number(layer.value) - 1 }));
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
  const depth = Math.max(...[state.a, state.b].map((i) => report.models[i]?.layers.length ?? 0));
  document.getElementById("image-choice").value = state.image;
  const layer = document.getElementById("layer-choice");
  layer.max = depth;
  layer.value = state.layer + 1;
  document.getElementById("layer-number").textContent = `${state.layer + 1} of ${depth}`;
  const head = document.getElementById("head-choice");
  head.replaceChildren(...Array.from({ length: mostHeads }, (_, k) => h("option", { value: k }, k + 1)));
  head.value = state.head;
  document.getElementById("a-choice").value = state.a;
  document.getElementById("b-choice").value = state.b ?? "";
  const sentences = verdict(report.models[state.a], untrainedModel(), report.classes?.length ?? 0);
  document.getElementById("verdict").textContent = sentences.join(" ");
}

function models() {
  const items = report.models.map((model, i) => {
    const right = model.predicted && model.labelled ? `, ${percent(model.right / model.labelled)} right` : "";
    const about = `${model.name}, ${model.layers.length} layer${model.layers.length === 1 ? "" : "s"}${right}`;
    const dot = h("span", { class: "dot", style: { color: mark(i) } });
    return h("li", {}, dot, h("span", {}, model.label, " ", h("small", {}, about)));
  });
  document.getElementById("models").replaceChildren(...items);
}

onChoice((changed) => {
  for (const [id, , needs] of SECTIONS) if (needs.some((name) => changed.includes(name))) waiting.add(id);
  showChoice();
  drawAll();
});
if (ignored.length) {
  const sentence = `This link's ${ignored.join(", ")} could not be used on this page and was left out.`;
  document.getElementById("models").before(h("p", { class: "warning" }, sentence));
}
models();
explainWords();
bar();
showChoice();
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
  sentences: {
    againstUntrained,
    attentionSentence,
    counts,
    directionSentence,
    entriesSentence,
    headsSentence,
    mapsSentence,
    measureSentences,
    objectiveSentence,
    rateSentence,
    rightSentence,
    shapeOf,
    stepsSentence,
    subspacesSentence,
    verdict,
    wholeRateSentence,
  },
};

// The page: the bar of choices, and the sections. A section is redrawn when a choice that it depends on changes.

import { codeNeeds, renderCode } from "./code.js";
import { mostHeads, mostLayers, report } from "./data.js";
import { h, mark, percent } from "./dom.js";
import { imageNeeds, renderImage } from "./image.js";
import { objectiveNeeds, renderObjective } from "./objective.js";
import { renderRun, runNeeds } from "./run.js";
import { renderSegments, segmentsNeeds } from "./segments.js";
import { choose, onChoice, state } from "./state.js";
import { renderSubspaces, subspacesNeeds } from "./subspaces.js";

const SECTIONS = [
  ["objective", renderObjective, objectiveNeeds],
  ["look", renderImage, imageNeeds],
  ["code", renderCode, codeNeeds],
  ["subspaces", renderSubspaces, subspacesNeeds],
  ["segments", renderSegments, segmentsNeeds],
  ["run", renderRun, runNeeds],
];

const wanted = new Set(SECTIONS.map(([id]) => id));
let drawing = false;

// Draw the requested sections one after the other, then those requested meanwhile. A section that fails shows its
// error; the others are not affected.
async function drawAll() {
  if (drawing) return;
  drawing = true;
  document.body.setAttribute("aria-busy", "true");
  while (wanted.size) {
    const [id, render] = SECTIONS.find(([name]) => wanted.has(name));
    wanted.delete(id);
    const body = document.querySelector(`#${id} > .body`);
    const focus = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    try {
      await render(body);
    } catch (error) {
      console.error(error);
      body.replaceChildren(h("p", { class: "none" }, `This section could not be drawn: ${error.message}`));
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
  layer.max = mostLayers;
  layer.addEventListener("input", () => choose({ layer: Number(layer.value) - 1 }));
  const head = document.getElementById("head-choice");
  head.replaceChildren(...Array.from({ length: mostHeads }, (_, k) => h("option", { value: k }, k + 1)));
  head.addEventListener("change", () => choose({ head: Number(head.value) }));
}

function showChoice() {
  document.getElementById("image-choice").value = state.image;
  document.getElementById("layer-choice").value = state.layer + 1;
  document.getElementById("layer-told").textContent = `${state.layer + 1} of ${mostLayers}`;
  document.getElementById("head-choice").value = state.head;
}

function models() {
  const items = report.models.map((model, i) => {
    const hide = (event) => {
      const hidden = new Set(state.hidden);
      event.target.checked ? hidden.delete(i) : hidden.add(i);
      if (hidden.size === report.models.length)
        event.target.checked = true; // one is always shown
      else choose({ hidden });
    };
    const right = model.predicted && model.labelled ? `, ${percent(model.right / model.labelled)} right` : "";
    const about = `${model.name}, ${model.layers.length} layer${model.layers.length === 1 ? "" : "s"}${right}`;
    const box = report.models.length > 1 ? h("input", { type: "checkbox", checked: true, onchange: hide }) : null;
    return h(
      "li",
      {},
      h(
        "label",
        {},
        box,
        h("span", { class: "dot", style: { color: mark(i) } }),
        h("span", {}, model.label, " ", h("small", {}, about)),
      ),
    );
  });
  document.getElementById("models").replaceChildren(...items);
}

onChoice((changed) => {
  for (const [id, , needs] of SECTIONS) if (needs.some((name) => changed.includes(name))) wanted.add(id);
  showChoice();
  drawAll();
});
models();
bar();
showChoice();
drawAll();

// How the page was made, and a button that saves every number of it.

import { report } from "./data.js";
import { panelOf } from "./dom.js";
import { h } from "./element.js";
import { countOf, percent } from "./numbers.js";

export const runNeeds = [];

export async function renderRun(body) {
  const { run } = report;
  const facts = {
    command: h("code", {}, run.command),
    date: run.date,
    data: `${run.data.join("; ")}: ${run.measured} of ${run.of} images measured, ${report.images.length} shown`,
    settings: Object.entries(run.settings)
      .map(([name, value]) => `${name} ${value}`)
      .join(", "),
    versions: Object.entries(run.versions)
      .map(([name, value]) => `${name} ${value}`)
      .join(", "),
    device: run.device,
    precision: precision(),
  };
  const save = h(
    "button",
    { type: "button", class: "save", "data-key": "save", onclick: saveNumbers },
    "Save every number of this page (JSON)",
  );
  const of = `${countOf(report.models.length, "model")}: files, sizes, what is not defined`;
  body.replaceChildren(
    list(facts),
    save,
    h("details", {}, h("summary", {}, of), h("div", { class: "three" }, report.models.map(modelFacts))),
  );
}

function list(facts) {
  return h(
    "dl",
    { class: "facts" },
    Object.entries(facts).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}

function precision() {
  const { bits, side } = report.attention;
  const sentences = [
    "Means, deviations and counts are exact.",
    `Attention is stored as ${bits}-bit square roots, with one scale per image and head.`,
    `The error is at most 1/${bits === 8 ? 255 : 65535} of the largest entry.`,
    "Masks have 8 bits, fractions and cosines 16.",
  ];
  if (side > 1) {
    sentences.push(`To limit the page's size, attention is stored between blocks of ${side} × ${side} patches:`);
    sentences.push("the mean over the query patches of the sum over the key patches.");
  }
  return sentences.join(" ");
}

function modelFacts(model, index) {
  const { run } = model;
  const facts = {
    model: `${model.name}, ${countOf(model.layers.length, "layer")}, ${model.parameters.toLocaleString("en")} parameters`,
    config: run.config,
    checkpoint: run.checkpoint,
  };
  if (run.sha256) facts["SHA-256"] = h("code", {}, run.sha256);
  if (model.predicted && model.labelled)
    facts.right = `${model.right} of ${model.labelled} measured images, ${percent(model.right / model.labelled)}`;
  if (run.notes?.length) facts.notes = run.notes.join("; ");
  const lacks = [...new Set(Object.values(model.undefined))];
  if (lacks.length) facts["not defined"] = lacks.join(" ");
  const config = run.model
    ? h("details", {}, h("summary", {}, "The model's config"), h("pre", { tabindex: 0 }, run.model))
    : null;
  return panelOf(model, index, list(facts), config ?? "");
}

function saveNumbers() {
  const text = document.getElementById("report-data").textContent;
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: address, download: "report.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

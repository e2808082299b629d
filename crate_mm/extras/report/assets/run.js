// How the page was made, and a button that saves every number of it.

import { report } from "./data.js";
import { panelOf } from "./charts.js";
import { button, div, fold, h } from "./dom.js";
import { countOf } from "./numbers.js";

export async function renderRun(body) {
  const { run } = report;
  const pairs = (values) =>
    Object.entries(values)
      .map(([name, value]) => `${name} ${value}`)
      .join(", ");
  const facts = {
    command: h("code", {}, run.command),
    date: run.date,
    data: `${run.data.join("; ")}: ${run.measured} of ${run.of} images measured, ${report.images.length} shown`,
    settings: pairs(run.settings),
    versions: pairs(run.versions),
    device: run.device,
    precision: precision(),
  };
  const save = button("save", "Save every number of this page (JSON)", saveNumbers, null, { class: "save" });
  const models = div("three", report.models.map(modelFacts));
  body.replaceChildren(
    list(facts),
    save,
    fold("files", `${countOf(report.models.length, "model")}: files, sizes`, models),
  );
}

function list(facts) {
  const items = Object.entries(facts).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
  return h("dl", { class: "facts" }, items);
}

function precision() {
  const { bits, side } = report.attention;
  const most = bits === 8 ? 255 : 65535;
  const blocks = ` between blocks of ${side} × ${side} patches, to limit the page's size,`;
  return `Means, deviations and counts are exact. Precomputed attention is stored${side > 1 ? blocks : ""} in ${bits} bits, as square roots. The error of a square root is at most 1/${most} of the largest in its head.`;
}

function modelFacts(model, index) {
  const { run } = model;
  const facts = {
    model: `${model.name}, ${countOf(model.layers.length, "layer")}, ${model.parameters.toLocaleString("en")} parameters`,
    config: run.config,
    checkpoint: run.checkpoint,
  };
  if (run.sha256) facts["SHA-256"] = h("code", {}, run.sha256);
  if (run.notes?.length) facts.notes = run.notes.join("; ");
  const config = run.model && fold(`config-${index}`, "The model's config", h("pre", { tabindex: 0 }, run.model));
  return panelOf(model, index, list(facts), config ?? "");
}

function saveNumbers() {
  const text = document.getElementById("report-data").textContent;
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: address, download: "report.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

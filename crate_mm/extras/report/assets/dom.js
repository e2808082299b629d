// Elements that several sections use.

import { report } from "./data.js";
import { h } from "./element.js";
import { state } from "./state.js";

// The color of a model: A, B, an untrained one, another one.
export function mark(index) {
  if (report.models[index].untrained) return "var(--untrained)";
  return index === state.a ? "var(--a)" : index === state.b ? "var(--b)" : "var(--other)";
}

// A model's mark: round, and square for B.
export function dot(index) {
  return h("span", { class: index === state.b ? "dot square" : "dot", style: { color: mark(index) } });
}

// The heading of a model: its mark and its label.
export function heading(model, index) {
  return h("h3", {}, dot(index), model.label);
}

// A box of a model, with its heading.
export function panelOf(model, index, ...children) {
  const box = h("article", { class: "model", "data-model": index, style: { "--mark": mark(index) } });
  box.append(heading(model, index), ...children);
  return box;
}

export function nothing(sentence) {
  return h("p", { class: "none" }, `Not defined here. ${sentence}`);
}

// In place of a view that a model does not define. The reason is said once, beside the model's name at the top.
export function lacking(model, what, otherwise = "") {
  if (!Object.hasOwn(model.undefined, what)) return nothing(otherwise);
  return h("p", { class: "none" }, `Not defined for ${model.label}: see its line at the top.`);
}

// Names with bars: rows of [name, value, text]. A value of 1 fills the line; a line at `line`.
export function bars(rows, { told = null, line = null, behind = [] } = {}) {
  const part = (name, share) => h("i", { class: name, style: { width: `${100 * Math.min(Math.abs(share), 1)}%` } });
  const items = rows.map(([name, value, text], i) =>
    h(
      "li",
      {},
      h("span", {}, name),
      h("span", {}, text),
      h(
        "span",
        { class: "barline" },
        part(value < 0 ? "minus" : null, value),
        i in behind ? part("behind", behind[i]) : null,
        line === null ? null : h("i", { class: "base", style: { left: `${100 * line}%` } }),
      ),
    ),
  );
  return h("ol", { class: "top", "data-told": told }, items);
}

export function say(text) {
  document.getElementById("live").textContent = text;
}

// Let the browser handle what waits.
export function pause() {
  return new Promise((go) => setTimeout(go));
}

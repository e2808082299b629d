// Elements and numbers. Content of elements is always text: names are never parsed as HTML.

import { report } from "./data.js";
import { state } from "./state.js";

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// A number with four significant digits.
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2);
  return value.toPrecision(Math.max(4, String(Math.trunc(size)).length));
}

export function percent(value) {
  return `${Number((100 * value).toPrecision(3))} %`;
}

// The color of a model: A, B, an untrained one, another one.
export function mark(index) {
  if (report.models[index].untrained) return "var(--untrained)";
  return index === state.a ? "var(--a)" : index === state.b ? "var(--b)" : "var(--other)";
}

// The heading of a model: its color and its label.
export function heading(model, index) {
  return h("h3", {}, h("span", { class: "dot", style: { color: mark(index) } }), model.label);
}

export function nothing(sentence) {
  return h("p", { class: "none" }, `Not defined here. ${sentence}`);
}

export function say(text) {
  document.getElementById("live").textContent = text;
}

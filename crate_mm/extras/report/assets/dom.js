// Elements. Their content is always text: names are never parsed as HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function div(name, ...children) {
  return h("div", { class: name }, children);
}

// A sentence computed from the page's numbers, and a smaller one; `told` is its name for tests.
export function says(told, ...text) {
  return h("p", { class: "says", "data-told": told }, text);
}

export function note(text, told = null) {
  return h("p", { class: "note", "data-told": told }, text);
}

// A button. The focus returns to its `key` when its section is redrawn; `on` tells whether it is what is chosen.
export function button(key, content, click, on = null, more = {}) {
  return h("button", { type: "button", "data-key": key, "aria-pressed": on, onclick: click, ...more }, content);
}

// Buttons in a row or in lines.
export function buttons(...children) {
  return h("p", { class: "buttons" }, children);
}

// A list of options [value, text]. `pick` gets the value that is chosen.
export function select(key, label, entries, chosen, pick) {
  const options = entries.map(([value, text]) => h("option", { value }, text));
  const list = h("select", { "data-key": key, "aria-label": label, onchange: () => pick(list.value) }, options);
  list.value = chosen;
  return list;
}

const open = new Set(); // the keys of what is unfolded

// What is folded stays so when its section is redrawn.
export function fold(key, summary, ...children) {
  const toggle = () => (box.open ? open.add(key) : open.delete(key));
  const box = h("details", { open: open.has(key), ontoggle: toggle }, h("summary", {}, summary), children);
  return box;
}

export function unfold(key) {
  open.add(key);
}

export function nothing(sentence) {
  return h("p", { class: "none" }, `Not defined here. ${sentence}`);
}

// A bar that fills a share of its line.
export function barline(share) {
  return h("span", { class: "barline" }, h("i", { style: { width: `${100 * share}%` } }));
}

// Names with bars: rows of [name, value, text]. A value of 1 fills the line; a line at `line`.
export function bars(rows, { told = null, line = null, behind = [] } = {}) {
  const part = (name, share) => h("i", { class: name, style: { width: `${100 * Math.min(Math.abs(share), 1)}%` } });
  const base = () => line !== null && h("i", { class: "base", style: { left: `${100 * line}%` } });
  const items = rows.map(([name, value, text], i) => {
    const bar = [part(value < 0 ? "minus" : null, value), i in behind && part("behind", behind[i]), base()];
    return h("li", {}, h("span", {}, name), h("span", {}, text), h("span", { class: "barline" }, bar));
  });
  return h("ol", { class: "top", "data-told": told }, items);
}

export function say(text) {
  document.getElementById("live").textContent = text;
}

// Let the browser handle what waits.
export function pause() {
  return new Promise((go) => setTimeout(go));
}

// Let the browser show what is drawn. A hidden page shows nothing.
export function frame() {
  return new Promise((go) => (document.hidden ? setTimeout(go) : requestAnimationFrame(() => setTimeout(go))));
}

// Scroll a row sideways to what is chosen in it, and nothing else: scrollIntoView would also scroll the page.
export function reveal(row, chosen) {
  const [inner, outer] = [chosen.getBoundingClientRect(), row.getBoundingClientRect()];
  if (inner.left >= outer.left && inner.right <= outer.right) return;
  row.scrollLeft += (inner.left + inner.right - outer.left - outer.right) / 2;
}

// Heat maps of numbers, over an image or alone. Each cell can also be read as text.

import { h } from "./dom.js";

const LONG = 480; // pixels of the longer side of a picture

const loaded = new Map();

// An image of a data URL, decoded.
export function picture(url) {
  if (!loaded.has(url)) {
    const image = new Image();
    image.src = url;
    loaded.set(
      url,
      image.decode().then(() => image),
    );
  }
  return loaded.get(url);
}

function sizeOf({ rows, columns, image, stretch }) {
  let [height, width] = image ? [image.naturalHeight, image.naturalWidth] : [rows, columns];
  if (stretch) height = width * stretch;
  const long = stretch && columns > 48 ? columns * Math.ceil(960 / columns) : LONG;
  const scale = long / Math.max(height, width);
  return [Math.max(Math.round(height * scale), 1), Math.max(Math.round(width * scale), 1)];
}

// Draw values of 0 to 1 as opacity of the accent color, or `colours` unchanged, over an image or nothing.
export function draw(canvas, options) {
  const { rows, columns, values, colours, image, chosen, mask } = options;
  const [height, width] = sizeOf(options);
  Object.assign(canvas, { height, width, values });
  const context = canvas.getContext("2d");
  const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  const edge = (i, count, size) => Math.round((i * size) / count);
  if (image) {
    context.imageSmoothingEnabled = Math.max(image.naturalWidth, image.naturalHeight) > 100;
    if (!mask) context.filter = "grayscale(1)";
    context.drawImage(image, 0, 0, width, height);
    context.filter = "none";
  }
  const cell = (i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const [top, left] = [edge(row, rows, height), edge(column, columns, width)];
    return [left, top, edge(column + 1, columns, width) - left, edge(row + 1, rows, height) - top];
  };
  for (let i = 0; i < rows * columns; i++) {
    if (colours) context.fillStyle = `rgb(${[0, 1, 2].map((c) => Math.round(255 * colours[3 * i + c])).join(" ")})`;
    else context.fillStyle = mask ? "#101216" : accent;
    if (mask) context.globalAlpha = values[i] > 0.5 ? 0 : 0.82;
    else context.globalAlpha = colours ? 1 : (image ? 0.85 : 1) * Math.min(values[i], 1);
    context.fillRect(...cell(i));
  }
  context.globalAlpha = 1;
  if (chosen !== undefined && chosen !== null) {
    const [left, top, w, t] = cell(chosen);
    for (const [colour, line] of [
      ["#000", 5],
      ["#fff", 2.5],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(left + 1.5, top + 1.5, w - 3, t - 3);
    }
  }
}

// A picture with a caption and a line that reads the cell below the pointer.
//   key: identifies the canvas, to restore the focus; name: label for screen readers
//   tell(i): text of a cell; pick(row, column): called when a click or an arrow key selects a cell
export function heat(options) {
  const { key, name, rows, columns, tell, pick, caption, chosen, image } = options;
  const canvas = h("canvas", { "data-key": key, class: pick ? "pick" : null });
  canvas.setAttribute("role", pick ? "application" : "img");
  canvas.setAttribute("aria-label", name);
  draw(canvas, options);
  const reading = h("p", { class: "reading", "aria-hidden": "true" });
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
  };
  if (tell) {
    canvas.addEventListener("pointermove", (event) => {
      const [row, column] = under(event);
      reading.textContent = tell(row * columns + column);
    });
    canvas.addEventListener("pointerleave", () => (reading.textContent = ""));
  }
  if (pick) {
    canvas.tabIndex = 0;
    canvas.setAttribute("aria-roledescription", "patches; arrow keys choose");
    canvas.addEventListener("click", (event) => pick(...under(event)));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const row = Math.floor(chosen / columns) + moves[event.key][0];
      const column = (chosen % columns) + moves[event.key][1];
      if (row >= 0 && row < rows && column >= 0 && column < columns) pick(row, column);
    });
  }
  const title = caption ? h("figcaption", {}, caption) : null;
  return h("figure", { class: image ? "heat" : "heat plain" }, title, canvas, tell ? reading : null);
}

// Values divided by their maximum.
export function shares(values) {
  const most = values.reduce((a, b) => Math.max(a, b), 0) || 1;
  return Float64Array.from(values, (value) => value / most);
}

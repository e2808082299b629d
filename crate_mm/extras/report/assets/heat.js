// Pictures, masks and matrices, and cells that can be pointed at, clicked and walked through by keys.

import { grayOfPicture, gridOf, over, paint, ring, signed, strength, viridis } from "./colour.js";
import { report } from "./data.js";
import { h, say } from "./dom.js";
import { number } from "./numbers.js";
import { choosePatch, state } from "./state.js";
import { scaleOf } from "./views.js";

const loaded = new Map();

// An image of a data URL, decoded.
export function picture(url) {
  if (!loaded.has(url)) {
    const image = Object.assign(new Image(), { src: url });
    loaded.set(
      url,
      image.decode().then(() => image),
    );
  }
  return loaded.get(url);
}

// The gray values of a shown image, 0 to 1.
export async function grayBelow(model) {
  return grayOfPicture(await picture(report.datas[model.data].pictures[state.image]));
}

// A map of a head's attention from the chosen token, which is ringed: over a gray picture, or alone.
export function attentionMap(maps, k, below, long, properties = { "aria-hidden": "true" }) {
  const canvas = h("canvas", properties);
  const most = scaleOf();
  const strengths = maps.times[k].map((x) => strength(x, most));
  const colour = (i, v) => (below ? over(strengths[1 + i], v) : viridis(strengths[1 + i]));
  paint(canvas, { ...maps, below, long, colour });
  if (maps.chosen) ring(canvas, maps.chosen - 1, maps);
  return canvas;
}

// The differences of two maps: purple and orange up to `most`.
export function differenceMap(maps, difference, most, long, properties = { "aria-hidden": "true" }) {
  const canvas = h("canvas", properties);
  return paint(canvas, { ...maps, long, colour: (i) => signed(difference[1 + i], most) });
}

// Let clicks and arrow keys choose a patch.
export function pickPatch(canvas, maps, read) {
  const { columns, side, patches, chosen } = maps;
  const pick = (i) => choosePatch(Math.floor(i / columns) * side, (i % columns) * side, ...patches);
  canvas.setAttribute("aria-roledescription", "patches; arrow keys choose");
  pickable(canvas, maps, { read, pick, chosen: () => Math.max(chosen - 1, 0) });
}

// A picture, dark where a mask of the cells is 0.
export function masked(image, mask, cells, name) {
  const scale = 168 / Math.max(image.naturalWidth, image.naturalHeight);
  const sides = [image.naturalWidth, image.naturalHeight];
  const [width, height] = sides.map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = Object.assign(h("canvas", { width, height, role: "img", "aria-label": name }), { mask });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(image, 0, 0, width, height);
  context.fillStyle = "rgb(16 18 22 / 0.82)";
  const grid = gridOf(cells);
  mask.forEach((kept, cell) => {
    if (kept > 0.5) return;
    const [top, left, bottom, right] = grid.box(cell).map((share, i) => Math.round(share * (i % 2 ? width : height)));
    context.fillRect(left, top, right - left, bottom - top);
  });
  return canvas;
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// Cells of a canvas: a click or an arrow key calls `pick(i)`, the pointer `read(i)`. `chosen()` is the cell from which
// keys move.
function pickable(canvas, cells, { pick, read = () => {}, chosen }) {
  const grid = gridOf(cells);
  const { rows, columns } = cells;
  const inside = (value, most) => Math.min(Math.max(value, 0), most - 1);
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const share = (at, size) => Math.min(Math.max(at / size, 0), 0.9999);
    return grid.at(share(event.clientY - box.top, box.height), share(event.clientX - box.left, box.width));
  };
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.addEventListener("click", (event) => pick(under(event)));
  canvas.addEventListener("pointermove", (event) => read(under(event)));
  canvas.addEventListener("keydown", (event) => {
    const [row, column] = [Math.floor(chosen() / columns), chosen() % columns];
    const ends = { Home: 0, End: columns - 1 };
    if (!(event.key in MOVES) && !(event.key in ends)) return;
    event.preventDefault();
    const [down, across] = MOVES[event.key] ?? [0, ends[event.key] - column];
    pick(inside(row + down, rows) * columns + inside(column + across, columns));
  });
}

// A square matrix of amounts up to 1. `names` are those of its rows and columns; keys and the pointer read its cells.
export function matrix(key, name, caption, names, values) {
  const canvas = h("canvas", { "data-key": key, "aria-label": name });
  canvas.setAttribute("aria-roledescription", "matrix; arrow keys read");
  const size = names.length;
  paint(canvas, { rows: size, columns: size, colour: (i) => viridis(strength(values[i], 1)) });
  canvas.values = values;
  const reading = h("p", { class: "reading", "aria-hidden": "true" });
  let at = 0;
  const read = (i) => {
    at = i;
    reading.textContent = `${names[Math.floor(i / size)]}, ${names[i % size]}: ${number(values[i])}`;
  };
  const pick = (i) => (read(i), say(reading.textContent));
  pickable(canvas, { rows: size, columns: size }, { read, pick, chosen: () => at });
  return h("figure", { class: "heat" }, h("figcaption", {}, caption), canvas, reading);
}

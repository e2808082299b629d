// Pictures, masks and matrices, and cells that can be pointed at, clicked and walked through by keys.

import { gridOf, paint, strength, viridis } from "./colour.js";
import { say } from "./dom.js";
import { h } from "./element.js";
import { number } from "./numbers.js";

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

// A picture, dark where a mask of the cells is 0.
export function masked(canvas, image, mask, cells) {
  const scale = 168 / Math.max(image.naturalWidth, image.naturalHeight);
  const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) =>
    Math.max(1, Math.round(side * scale)),
  );
  Object.assign(canvas, { width, height, mask });
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
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// Cells of a canvas: a click or an arrow key calls `pick(i)`, the pointer `read(i)`. `chosen()` is the cell from which
// keys move.
export function pickable(canvas, cells, { pick, read = () => {}, chosen }) {
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

// A matrix of amounts up to `most`. `rows` and `columns` are the names; keys and the pointer read its cells.
export function matrix({ key, name, caption, rows, columns, values, most = 1 }) {
  const canvas = h("canvas", {
    "data-key": key,
    "aria-label": name,
    "aria-roledescription": "matrix; arrow keys read",
  });
  const cells = { rows: rows.length, columns: columns.length };
  paint(canvas, { ...cells, colour: (i) => viridis(strength(values[i], most)) });
  canvas.values = values;
  const reading = h("p", { class: "reading", "aria-hidden": "true" });
  let at = 0;
  const read = (i) => {
    at = i;
    reading.textContent = `${rows[Math.floor(i / columns.length)]}, ${columns[i % columns.length]}: ${number(values[i])}`;
  };
  pickable(canvas, cells, {
    read,
    chosen: () => at,
    pick: (i) => {
      read(i);
      say(reading.textContent);
    },
  });
  return h("figure", { class: "heat" }, h("figcaption", {}, caption), canvas, reading);
}

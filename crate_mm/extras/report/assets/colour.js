// Colours: viridis for amounts, purple and orange for signs, and a map over a gray picture.

const STOPS = "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725"
  .split(" ")
  .map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
export const GROUND = [21, 23, 27]; // 15171b, below all maps in both themes: yellow cannot be seen on white
const NEGATIVE = [154, 127, 209];
const POSITIVE = [253, 154, 60];

// 1,024 colours of viridis, linear between its stops.
const VIRIDIS = Array.from({ length: 1024 }, (_, n) => {
  const at = (n / 1023) * (STOPS.length - 1);
  const first = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[first].map((value, c) => value + (at - first) * (STOPS[first + 1][c] - value));
});

// The colour of t in [0, 1] as [r, g, b].
export function viridis(t) {
  return VIRIDIS[Math.round(1023 * Math.min(Math.max(t, 0), 1))];
}

// The position on the scale of an amount x, of at most `most`. The square root shows small amounts.
export function strength(x, most) {
  return Math.sqrt(Math.min(Math.max(x, 0) / (most || 1), 1));
}

// An attention of t on a pixel of gray v in [0, 1].
export function over(t, v) {
  const gray = 255 * (0.05 + 0.27 * v);
  const opacity = 0.25 + 0.75 * t;
  return viridis(t).map((value) => (1 - opacity) * gray + opacity * value * (0.65 + 0.35 * v));
}

// A number with a sign, of at most `most` in size.
export function signed(x, most) {
  const opacity = Math.min(Math.abs(x) / (most || 1), 1);
  return (x < 0 ? NEGATIVE : POSITIVE).map((value, c) => (1 - opacity) * GROUND[c] + opacity * value);
}

// An entry of a code: 0 is the ground, the least entry can still be seen.
export function entry(x, most) {
  return x === 0 ? GROUND : viridis(0.35 + 0.65 * strength(x, most));
}

// The end of the scale of values in times uniform: their 0.995 quantile, up to the next of 1, 2, 5 x 10^i, from 2 to N.
export function scaleEnd(values, tokens) {
  const sorted = Float64Array.from(values).sort();
  const high = sorted[Math.min(Math.ceil(0.995 * sorted.length), sorted.length) - 1] ?? 1;
  const power = 10 ** Math.floor(Math.log10(Math.max(high, 1e-9)));
  const round = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= high * (1 - 1e-9));
  return Math.min(Math.max(round, 2), Math.max(tokens, 2));
}

// The cells of a grid: `rows` x `columns` of them, each `side` x `side` of `patches` [rows, columns], fewer at the end.
export function gridOf({ rows, columns, side = 1, patches = [rows, columns] }) {
  const line = (place, whole, cells) => Math.min(Math.floor(Math.floor(place * whole) / side), cells - 1);
  return {
    rows,
    columns,
    at: (y, x) => line(y, patches[0], rows) * columns + line(x, patches[1], columns),
    box: (cell) => {
      const [row, column] = [Math.floor(cell / columns), cell % columns];
      const [top, left] = [(row * side) / patches[0], (column * side) / patches[1]];
      return [top, left, Math.min(((row + 1) * side) / patches[0], 1), Math.min(((column + 1) * side) / patches[1], 1)];
    },
  };
}

// Many small canvases are made at each choice: in plain memory they are made faster than in a graphics card's.
function contextOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

// Paint the cells of a grid with `colour(i, v)`, v the gray of the picture below, 0 to 1, or 1 without one; it is linear in
// v, so two colours a cell give all. `below` is {values, width, height}. Cells have hard edges, and the canvas about `long`
// pixels along its longer side.
export function paint(canvas, { colour, below = null, long = 240, ...cells }) {
  const grid = gridOf(cells);
  const skip = below ? Math.max(1, Math.floor(Math.max(below.height, below.width) / long)) : 1;
  const [high, wide] = below
    ? [Math.ceil(below.height / skip), Math.ceil(below.width / skip)]
    : (cells.patches ?? [cells.rows, cells.columns]);
  const small = new ImageData(wide, high);
  const count = cells.rows * cells.columns;
  const [dark, light] = [0, 1].map((v) =>
    Float64Array.from(Array.from({ length: count }, (_, i) => colour(i, v)).flat()),
  );
  const across = Array.from({ length: wide }, (_, x) => grid.at(0, x / wide));
  let at = 0;
  for (let y = 0; y < high; y++) {
    const row = grid.at(y / high, 0);
    for (let x = 0; x < wide; x++) {
      const v = below ? below.values[y * skip * below.width + x * skip] : 1;
      const cell = 3 * (row + across[x]);
      for (let c = 0; c < 3; c++) small.data[at++] = dark[cell + c] + v * (light[cell + c] - dark[cell + c]);
      small.data[at++] = 255;
    }
  }
  const times = Math.max(1, Math.ceil(long / Math.max(high, wide)));
  Object.assign(canvas, { width: wide * times, height: high * times });
  const context = contextOf(canvas);
  context.putImageData(small, 0, 0);
  if (times === 1) return canvas;
  context.imageSmoothingEnabled = false;
  context.globalCompositeOperation = "copy";
  context.drawImage(canvas, 0, 0, wide, high, 0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
  return canvas;
}

// A ring around a cell: ink and page, never a hue.
export function ring(canvas, cell, cells) {
  const context = contextOf(canvas);
  const [top, left, bottom, right] = gridOf(cells)
    .box(cell)
    .map((share, i) => share * (i % 2 ? canvas.width : canvas.height));
  const thick = Math.max(canvas.width, canvas.height) / 80;
  for (const [colour, inset] of [
    ["#000", 0.5],
    ["#fff", 1.5],
  ]) {
    context.strokeStyle = colour;
    context.lineWidth = thick;
    const by = inset * thick;
    context.strokeRect(left + by, top + by, right - left - 2 * by, bottom - top - 2 * by);
  }
}

// The gray values, 0 to 1, of bytes (C, H, W).
export function grayOf(bytes, [channels, height, width]) {
  const weights = channels === 3 ? [0.2126, 0.7152, 0.0722] : [1]; // Rec. 709
  const size = height * width;
  const values = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    let sum = 0;
    for (let c = 0; c < weights.length; c++) sum += weights[c] * bytes[c * size + i];
    values[i] = sum / 255;
  }
  return { values, width, height };
}

const grays = new WeakMap();

// The gray values of a decoded picture.
export function grayOfPicture(picture) {
  if (!grays.has(picture)) grays.set(picture, readGray(picture));
  return grays.get(picture);
}

function readGray(picture) {
  const [width, height] = [picture.naturalWidth, picture.naturalHeight];
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const bytes = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) bytes[c * width * height + i] = data[4 * i + c];
  return grayOf(bytes, [3, height, width]);
}

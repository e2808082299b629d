// From strokes to the pixels that a model gets. Strokes are polylines of [x, y] in units of the canvas, 0 to 1, so that
// the pen's width does not follow the size of the drawing.

const SIDE = 32; // of the grid on which ink is counted: scikit-learn's digits were counted on one of this size
const PEN = 5; // width of the pen in its cells
const FINE = 8; // samples of a cell along each side

// The drawing as scikit-learn's digits were made: 8 x 8 bytes, each the number of inked cells in a block of 4 x 4. The
// strokes are first scaled and moved, as those digits fill their grid; with `centre` false they stay where they are.
export function digits8(strokes, centre = true) {
  const points = strokes.flat();
  const counts = new Uint8Array(64);
  if (!points.length) return counts;
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const extent = Math.max(right - left, bottom - top);
  const scale = centre && extent > 0 ? (SIDE - PEN) / extent : SIDE;
  const [x0, y0] = centre ? [(left + right) / 2, (top + bottom) / 2] : [0.5, 0.5];
  const placed = strokes.map((line) =>
    line.map(([x, y]) => [(x - x0) * scale + SIDE / 2, (y - y0) * scale + SIDE / 2]),
  );
  const inked = rasterize(placed);
  inked.forEach((ink, i) => {
    if (ink) counts[8 * Math.floor(i / SIDE / 4) + Math.floor((i % SIDE) / 4)]++;
  });
  return counts.map((n) => Math.round((n * 255) / 16));
}

// The cells of the grid that a round pen covers by more than half.
function rasterize(lines) {
  const fine = new Uint8Array((SIDE * FINE) ** 2);
  const [width, radius] = [SIDE * FINE, (PEN * FINE) / 2];
  for (const line of lines) {
    for (let i = 0; i < Math.max(line.length - 1, 1); i++) {
      const [ax, ay] = line[i].map((v) => v * FINE);
      const [bx, by] = (line[i + 1] ?? line[i]).map((v) => v * FINE);
      const length = (bx - ax) ** 2 + (by - ay) ** 2;
      const span = (low, high) => [
        Math.max(0, Math.floor(low - radius)),
        Math.min(width - 1, Math.ceil(high + radius)),
      ];
      const [firstX, lastX] = span(Math.min(ax, bx), Math.max(ax, bx));
      const [firstY, lastY] = span(Math.min(ay, by), Math.max(ay, by));
      for (let y = firstY; y <= lastY; y++)
        for (let x = firstX; x <= lastX; x++) {
          const [px, py] = [x + 0.5 - ax, y + 0.5 - ay];
          const along = length ? Math.min(1, Math.max(0, (px * (bx - ax) + py * (by - ay)) / length)) : 0;
          if ((px - along * (bx - ax)) ** 2 + (py - along * (by - ay)) ** 2 <= radius ** 2) fine[y * width + x] = 1;
        }
    }
  }
  const covered = new Uint16Array(SIDE * SIDE);
  fine.forEach((ink, i) => {
    if (ink) covered[SIDE * Math.floor(i / width / FINE) + Math.floor((i % width) / FINE)]++;
  });
  return covered.map((count) => (count > (FINE * FINE) / 2 ? 1 : 0));
}

// Bytes (rows, columns) enlarged `times` times, as Pillow's bilinear resizing does: across, then down, and rounded after
// each.
export function enlarge(bytes, rows, columns, times) {
  const across = new Uint8Array(rows * columns * times);
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns * times; x++)
      across[y * columns * times + x] = between(x, columns, times, (i) => bytes[y * columns + i]);
  const width = columns * times;
  const result = new Uint8Array(rows * times * width);
  for (let y = 0; y < rows * times; y++)
    for (let x = 0; x < width; x++) result[y * width + x] = between(y, rows, times, (i) => across[i * width + x]);
  return result;
}

function between(place, count, times, value) {
  const at = (place + 0.5) / times - 0.5;
  const first = Math.floor(at);
  const [a, b] = [first, first + 1].map((i) => value(Math.min(Math.max(i, 0), count - 1)));
  return Math.floor((1 - at + first) * a + (at - first) * b + 0.5);
}

// A picture of any size as bytes (C, H, W): its shorter side is fitted, and its middle cut out.
export async function fromPicture(file, [height, width], channels) {
  const picture = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(width, height);
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, width, height);
  const bytes = new Uint8Array(channels * height * width);
  for (let i = 0; i < height * width; i++) {
    const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
    if (channels === 1)
      bytes[i] = Math.round(0.299 * r + 0.587 * g + 0.114 * b); // ITU-R 601, as Pillow's mode L
    else [r, g, b].forEach((v, c) => (bytes[c * height * width + i] = v));
  }
  return bytes;
}

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// Strokes as text for the address: two letters a point, in 64 steps a side; a point between strokes.
export function toText(strokes) {
  const letter = (v) => LETTERS[Math.min(63, Math.max(0, Math.round(v * 63)))];
  return strokes.map((line) => line.map(([x, y]) => letter(x) + letter(y)).join("")).join(".");
}

// The strokes of a text; "" and "-" have none.
export function fromText(text) {
  return text
    .split(".")
    .map((line) => line.match(/../g)?.map((pair) => [...pair].map((letter) => LETTERS.indexOf(letter) / 63)) ?? [])
    .filter((line) => line.length && line.flat().every((v) => v >= 0));
}

// An image (C, H, W) with strokes of a brush on it.
export function brushed(image, strokes, [channels, height, width], shade) {
  const bytes = Uint8Array.from(image);
  const radius = Math.max(height, width) / 18;
  for (const line of strokes)
    line.forEach(([x, y], i) => {
      const [nextX, nextY] = line[i + 1] ?? [x, y];
      for (let t = 0; t <= 1; t += 0.05) {
        const [cx, cy] = [(x + t * (nextX - x)) * width, (y + t * (nextY - y)) * height];
        for (let py = Math.max(0, Math.floor(cy - radius)); py < Math.min(height, cy + radius); py++)
          for (let px = Math.max(0, Math.floor(cx - radius)); px < Math.min(width, cx + radius); px++)
            if (Math.hypot(px + 0.5 - cx, py + 0.5 - cy) <= radius)
              for (let c = 0; c < channels; c++) bytes[(c * height + py) * width + px] = shade;
      }
    });
  return bytes;
}

// A hand-drawn form of each digit.
export const GLYPHS = [
  "gNXSTgXtgyotsgoSgN",
  "ZThNhy",
  "VUaNkNqVmeVyry",
  "VPgNoSnaefpkqtgyVv",
  "jNUmsm.laly",
  "qNYNXehcqjotgyVv",
  "mNcUWhXsfyotolggXm",
  "UNrNjcdy",
  "geXYYQgNnQnYgeWmXvgyovpmge",
  "oXgdXYYQgNoQoXnmiy",
].map(fromText);

// What a model computed for a shown image: read from the data, or computed here for the model that the page runs.

import { scaleEnd } from "./colour.js";
import { gunzip, part, report, unpack } from "./data.js";
import { pause } from "./dom.js";
import { forward, loadNet } from "./model.js";
import { patchIn, shownModels, state } from "./state.js";

const KEPT = 0.6; // fraction of the patches in a mask, as in crate_mm/analysis/segmentation.py

const nets = new Map();
const bytes = new Map();
const runs = new Map();

function once(cache, key, make) {
  if (!cache.has(key)) cache.set(key, make());
  return cache.get(key);
}

// Why the page does not compute a model's layers.
export function whyNotRunning(model) {
  return model.why_not_running ?? `${model.label}'s weights are not in this file: --weights-megabytes puts them in.`;
}

// The running model's weights.
export function netOf(model) {
  return once(nets, model, () => loadNet(model.running));
}

// The bytes (C, H, W) of a shown image, as the running model gets it.
export async function inputOf(model, image) {
  const { inputs } = report.datas[model.data];
  const all = await once(bytes, inputs, () => gunzip(inputs.gzip));
  return part(new Uint8Array(all), inputs.shape, image);
}

// The forward pass of the running model on a shown image.
export function runOf(model, image) {
  return once(runs, `${report.models.indexOf(model)} ${image}`, async () =>
    forward(await netOf(model), await inputOf(model, image)),
  );
}

// Attention of all heads in the chosen layer from the chosen token, or null: {heads: [1 + blocks numbers, class token
// first], rows, columns, side, patches, chosen}. Blocks have `side` x `side` patches; `chosen` is 0 for the class token, 1 + i
// for block i.
export async function attentionRows(model, layer = state.layer, image = state.image) {
  if (!model.layers[layer] || !model.grid) return null;
  const [prefix, patchRows, patchColumns] = model.grid;
  const side = model.running ? 1 : report.attention.side;
  const [rows, columns] = [Math.ceil(patchRows / side), Math.ceil(patchColumns / side)];
  const [row, column] = patchIn(patchRows, patchColumns);
  const chosen = state.cls && prefix ? 0 : 1 + Math.floor(row / side) * columns + Math.floor(column / side);
  const size = { rows, columns, side, chosen, patches: [patchRows, patchColumns] };
  if (model.running) {
    const [net, run] = [await netOf(model), await runOf(model, image)];
    const N = net.tokens;
    const heads = Array.from({ length: net.layers[layer].heads }, (_, k) =>
      part(run.layers[layer].attention, [net.layers[layer].heads, N, N], k, chosen),
    );
    return { heads, ...size };
  }
  const packed = model.layers[layer].looks.attention;
  if (!packed) return null;
  const values = await unpack(packed);
  const heads = Array.from({ length: packed.shape[1] }, (_, k) => part(values, packed.shape, image, k, chosen));
  return { heads, ...size };
}

// The class token's attention to the patches, an array per head, or null.
export async function classMaps(model, layer = state.layer, image = state.image) {
  if (model.running) {
    const [net, run] = [await netOf(model), await runOf(model, image)];
    const { heads } = net.layers[layer];
    return Array.from({ length: heads }, (_, k) =>
      part(run.layers[layer].attention, [heads, net.tokens, net.tokens], k, 0).subarray(1),
    );
  }
  const packed = model.layers[layer]?.looks.cls;
  if (!packed) return null;
  const values = await unpack(packed);
  return Array.from({ length: packed.shape[1] }, (_, k) => part(values, packed.shape, image, k));
}

// The masks of the heads, an array of 0 and 1 per head, or null.
export async function masksOf(model, layer = state.layer, image = state.image) {
  if (model.running) return (await classMaps(model, layer, image)).map(maskOf);
  const packed = model.layers[layer]?.looks.masks;
  if (!packed) return null;
  const values = await unpack(packed);
  return Array.from({ length: packed.shape[1] }, (_, k) => part(values, packed.shape, image, k));
}

// 1 for the patches with the largest attention, 0 for the others; of equal patches, the first.
function maskOf(attention) {
  const order = [...attention.keys()].sort((a, b) => attention[b] - attention[a]);
  const mask = new Float64Array(attention.length);
  for (const i of order.slice(0, Math.max(Math.round(KEPT * attention.length), 1))) mask[i] = 1;
  return mask;
}

const scales = new Map();

// The end of the scale of maps in times uniform: one for all shown images, layers and heads of A and B.
export async function scaleOf() {
  const ends = [];
  for (const { model } of shownModels()) ends.push(await ownScale(model));
  return Math.max(...ends);
}

function ownScale(model) {
  return once(scales, model, async () => {
    if (!model.grid) return 2;
    const [prefix, rows, columns] = model.grid;
    const tokens = prefix + rows * columns;
    const values = [];
    const side = model.running ? 1 : report.attention.side;
    // Of all entries to patches, at most about 5,000 of a layer's.
    const take = (matrix, size) => {
      let stride = Math.max(1, Math.floor(matrix.length / 5000));
      while (stride > 1 && (stride % size === 0 || size % stride === 0)) stride++;
      for (let i = 1; i < matrix.length; i += stride) if (i % size) values.push((tokens * matrix[i]) / side ** 2);
    };
    if (model.running)
      for (const image of report.images.keys()) {
        await pause();
        for (const { attention } of (await runOf(model, image)).layers) take(attention, tokens);
      }
    else
      for (const { looks } of model.layers) {
        await pause();
        if (looks.attention) take(await unpack(looks.attention), looks.attention.shape.at(-1));
      }
    return values.length ? scaleEnd(values, tokens) : 2;
  });
}

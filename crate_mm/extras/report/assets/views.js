// What a model computed for a shown image: read from the data, or computed here for the model that the page runs.

import { gunzip, part, report, unpack } from "./data.js";
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

// The running model's weights.
export function netOf(model) {
  return once(nets, model, () => loadNet(model.running));
}

// The bytes (C, H, W) of a shown image, as the running model gets it.
export async function inputOf(model, image = state.image) {
  const { inputs } = report.datas[model.data];
  const all = await once(bytes, inputs, () => gunzip(inputs.gzip));
  return part(new Uint8Array(all), inputs.shape, image);
}

// The forward pass of the running model on a shown image.
export function runOf(model, image = state.image) {
  const make = async () => forward(await netOf(model), await inputOf(model, image));
  return once(runs, `${report.models.indexOf(model)} ${image}`, make);
}

// The attention of all heads in a layer from the chosen token, or null: `heads`, arrays of 1 + blocks numbers, the class
// token first; `times`, the same in times uniform. Blocks have `side` x `side` patches; `chosen` is 0 for the class token,
// 1 + i for block i. `run` is a forward pass of the running model, that on the chosen image unless given.
export async function attentionRows(model, layer = state.layer, run = null) {
  if (!model.layers[layer] || !model.grid) return null;
  const [prefix, ...patches] = model.grid;
  const side = model.running ? 1 : report.attention.side;
  const [rows, columns] = patches.map((count) => Math.ceil(count / side));
  const [row, column] = patchIn(...patches).map((at) => Math.floor(at / side));
  const chosen = state.cls && prefix ? 0 : 1 + row * columns + column;
  const heads = await matrixRows(model, layer, chosen, run);
  const maps = { heads, rows, columns, side, chosen, patches, prefix };
  return heads && { ...maps, times: heads.map((weights) => timesUniform(weights, maps)) };
}

// A row of each head's matrix of attention.
async function matrixRows(model, layer, row, run = null) {
  if (!model.running) return packedRows(model.layers[layer]?.looks.attention, row);
  const { attention, input } = (run ?? (await runOf(model))).layers[layer];
  const N = input.length / model.running.width;
  const K = attention.length / N ** 2;
  return Array.from({ length: K }, (_, k) => part(attention, [K, N, N], k, row));
}

// What is packed of the chosen image, an array per head, or null.
async function packedRows(packed, ...places) {
  if (!packed) return null;
  const values = await unpack(packed);
  return Array.from({ length: packed.shape[1] }, (_, k) => part(values, packed.shape, state.image, k, ...places));
}

// A row of attention in times uniform: times the number of tokens, divided by a block's number of patches.
function timesUniform(weights, { columns, side, patches, prefix }) {
  const tokens = prefix + patches[0] * patches[1];
  const span = (at, most) => Math.min((at + 1) * side, most) - at * side;
  return Float64Array.from(weights, (a, i) => {
    if (i === 0 || side === 1) return a * tokens;
    return (a * tokens) / (span(Math.floor((i - 1) / columns), patches[0]) * span((i - 1) % columns, patches[1]));
  });
}

// The place of block i of a grid, in words.
export function placeOf(i, { columns, side, patches }) {
  const span = (at, most) => {
    const [first, last] = [at * side + 1, Math.min((at + 1) * side, most)];
    return first === last ? `${first}` : `${first} to ${last}`;
  };
  return `row ${span(Math.floor(i / columns), patches[0])}, column ${span(i % columns, patches[1])}`;
}

// The name of token i: 0 for the class token, 1 + i for block i.
export function tokenName(i, maps) {
  if (i === 0) return "the class token";
  const { side } = maps;
  return `the ${side === 1 ? "patch" : `block of ${side} × ${side} patches`} at ${placeOf(i - 1, maps)}`;
}

// The weights without a class token that the model does not have, their names, the same in times uniform, and how many
// tokens they are spread over.
export function spreadOf(maps, k) {
  const from = maps.prefix ? 0 : 1;
  const weights = maps.heads[k].subarray(from);
  const names = Array.from(weights, (_, i) => (from + i === maps.chosen ? "itself" : tokenName(from + i, maps)));
  return {
    weights,
    names,
    times: maps.times[k].subarray(from),
    spread: Math.exp(-weights.reduce((sum, a) => sum + (a > 0 ? a * Math.log(a) : 0), 0)),
  };
}

// The masks of the heads, an array of 0 and 1 per head, or null.
export async function masksOf(model) {
  if (!model.running) return packedRows(model.layers[state.layer]?.looks.masks);
  return (await matrixRows(model, state.layer, 0)).map((row) => maskOf(row.subarray(1)));
}

// 1 for the patches with the largest attention, 0 for the others; of equal patches, the first.
function maskOf(attention) {
  const order = [...attention.keys()].sort((a, b) => attention[b] - attention[a]);
  const mask = new Float64Array(attention.length);
  for (const i of order.slice(0, Math.max(Math.round(KEPT * attention.length), 1))) mask[i] = 1;
  return mask;
}

// The end of the scale of maps in times uniform, of A and B alike.
export function scaleOf() {
  return Math.max(...shownModels().map(({ model }) => model.scale));
}

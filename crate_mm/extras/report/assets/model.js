// CRATE's forward pass, as in crate_mm/models: tokens are rows, weights are PyTorch's (out, in). Products are summed in
// double precision and stored as float32.

import { gunzip, report } from "./data.js";

// The weights of a running model by name, from the text that crate_mm/extras/report/running.py packs.
export async function loadNet(running) {
  const buffer = await gunzip(running.gzip);
  const size = (shape) => shape.reduce((a, b) => a * b, 1);
  const half = running.dtype === "half";
  const inPlain = ([, shape, large]) => (!large ? size(shape) : half ? 0 : shape[0]);
  const largeCount = running.tensors.reduce((sum, [, shape, large]) => sum + (large ? size(shape) : 0), 0);
  const plainCount = running.tensors.reduce((sum, tensor) => sum + inPlain(tensor), 0);
  const view = new DataView(buffer);
  const plain = new Float32Array(plainCount);
  for (let i = 0; i < plainCount; i++) plain[i] = view.getFloat32(4 * i, true);
  const planes = new Uint8Array(buffer, 4 * plainCount);
  const table = half ? halves() : null;
  const tensors = new Map();
  let [p, q] = [0, 0];
  for (const [name, shape, large] of running.tensors) {
    const count = size(shape);
    if (!large) tensors.set(name, plain.subarray(p, p + count));
    else {
      const values = new Float32Array(count);
      for (let i = 0; i < count; i++)
        values[i] = half
          ? table[(planes[q + i] << 8) | planes[largeCount + q + i]]
          : ((planes[q + i] << 24) >> 24) * plain[p + Math.floor(i / shape[1])];
      tensors.set(name, values);
      q += count;
    }
    p += inPlain([name, shape, large]);
  }
  const layers = running.lambda.map((lambda, l) => {
    const get = (name) => tensors.get(`${l}.${name}`);
    const [d, inner] = [running.width, running.heads[l] * running.head_dims[l]];
    const [subspaces, dictionary] = [get("subspaces"), get("dictionary")];
    return {
      heads: running.heads[l],
      headDim: running.head_dims[l],
      eta: running.eta[l],
      lambda,
      subspaces,
      dictionary,
      transposed: transpose(dictionary, d, d),
      output: { tied: transpose(subspaces, inner, d), out: get("out.weight"), none: null }[running.output[l]],
      outputBias: get("out.bias"),
      normCompress: [get("norm_compress.weight"), get("norm_compress.bias"), running.eps.compress[l]],
      normSparsify: [get("norm_sparsify.weight"), get("norm_sparsify.bias"), running.eps.sparsify[l]],
    };
  });
  const [rows, columns] = (running.image ?? []).map((side, i) => side / running.patch[i]);
  return { ...running, get: (name) => tensors.get(name), layers, rows, columns, tokens: 1 + rows * columns };
}

// The float32 value of each of the 65,536 halves.
function halves() {
  const values = new Float32Array(65536);
  for (let bits = 0; bits < 32768; bits++) {
    const exponent = bits >> 10;
    const fraction = bits & 1023;
    values[bits] = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    values[bits + 32768] = -values[bits];
  }
  return values;
}

function transpose(matrix, rows, columns) {
  const result = new Float32Array(matrix.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = matrix[i * columns + j];
  return result;
}

// x W^T + b: x (rows, inner), W (outputs, inner). Blocks of 4 rows and 2 outputs are four times as fast as plain loops.
function product(x, W, rows, inner, outputs, bias = null) {
  const y = new Float32Array(rows * outputs);
  for (let i = 0; i < rows; i += 4) {
    const [a, b, c, d] = [0, 1, 2, 3].map((k) => Math.min(i + k, rows - 1) * inner);
    for (let o = 0; o < outputs; o += 2) {
      const [u, v] = [o * inner, Math.min(o + 1, outputs - 1) * inner];
      let [au, av, bu, bv, cu, cv, du, dv] = [0, 0, 0, 0, 0, 0, 0, 0];
      for (let j = 0; j < inner; j++) {
        const wu = W[u + j];
        const wv = W[v + j];
        au += x[a + j] * wu;
        av += x[a + j] * wv;
        bu += x[b + j] * wu;
        bv += x[b + j] * wv;
        cu += x[c + j] * wu;
        cv += x[c + j] * wv;
        du += x[d + j] * wu;
        dv += x[d + j] * wv;
      }
      const sums = [au, av, bu, bv, cu, cv, du, dv];
      for (let k = 0; k < 4 && i + k < rows; k++)
        for (let n = 0; n < 2 && o + n < outputs; n++)
          y[(i + k) * outputs + o + n] = sums[2 * k + n] + (bias ? bias[o + n] : 0);
    }
  }
  return y;
}

function layerNorm(x, rows, [weight, bias, eps]) {
  const d = x.length / rows;
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i += d) {
    let [mean, variance] = [0, 0];
    for (let j = 0; j < d; j++) mean += x[i + j] / d;
    for (let j = 0; j < d; j++) variance += (x[i + j] - mean) ** 2 / d;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let j = 0; j < d; j++) y[i + j] = (x[i + j] - mean) * scale * weight[j] + bias[j];
  }
  return y;
}

function softmax(values) {
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = new Float64Array(values.length);
  let total = 0;
  for (let i = 0; i < values.length; i++) total += powers[i] = Math.exp(values[i] - most);
  return new Float32Array(powers.map((v) => v / total));
}

// Bytes (C, H, W), row by row, to tokens (N, d).
function embed(net, bytes) {
  const [[H, W], [h, w], C] = [net.image, net.patch, net.channels];
  const patches = new Float32Array((net.tokens - 1) * h * w * C);
  let at = 0;
  for (let n = 0; n < net.tokens - 1; n++) {
    const [top, left] = [Math.floor(n / net.columns) * h, (n % net.columns) * w];
    for (let y = top; y < top + h; y++)
      for (let x = left; x < left + w; x++)
        for (let c = 0; c < C; c++)
          patches[at++] = Math.fround(bytes[(c * H + y) * W + x] - net.mean[c]) * net.scale[c];
  }
  const norm = (name, eps) => [net.get(`${name}.weight`), net.get(`${name}.bias`), eps];
  const normed = layerNorm(patches, net.tokens - 1, norm("patch_norm", net.eps.patch));
  const projected = product(normed, net.get("proj.weight"), net.tokens - 1, h * w * C, net.width, net.get("proj.bias"));
  const z = new Float32Array(net.tokens * net.width);
  z.set(net.get("cls"));
  z.set(layerNorm(projected, net.tokens - 1, norm("norm", net.eps.token)), net.width);
  const pos = net.get("pos");
  return z.map((value, i) => value + pos[i]);
}

// One layer. `heads` and `directions` are sets of numbers that are switched off; in a Map of directions, each entry of
// the code is set to the value that the Map has for its direction. Its steps are returned by name:
// input Z, normed LN(Z), w = LN(Z) U, attention (K, N, N), mixed (N, K p), added MSSA(LN(Z)), half Z + added,
// normedHalf LN(half), step eta (x D - x D^T D), code.
function runLayer(net, layer, z, { lambda = layer.lambda, heads = null, directions = null } = {}) {
  const [N, d, K, p] = [net.tokens, net.width, layer.heads, layer.headDim];
  const normed = layerNorm(z, N, layer.normCompress);
  const w = product(normed, layer.subspaces, N, d, K * p);
  const attention = new Float32Array(K * N * N);
  const mixed = new Float32Array(N * K * p);
  for (let k = 0; k < K; k++) {
    for (let i = 0; i < N; i++) {
      const seen = net.causal ? i + 1 : N;
      const scores = new Float64Array(seen);
      for (let j = 0; j < seen; j++) {
        let sum = 0;
        for (let c = k * p; c < (k + 1) * p; c++) sum += w[i * K * p + c] * w[j * K * p + c];
        scores[j] = sum / Math.sqrt(p);
      }
      const row = softmax(scores);
      attention.set(row, (k * N + i) * N);
      if (heads?.has(k)) continue;
      for (let c = k * p; c < (k + 1) * p; c++) {
        let sum = 0;
        for (let j = 0; j < seen; j++) sum += row[j] * w[j * K * p + c];
        mixed[i * K * p + c] = sum;
      }
    }
  }
  const added = layer.output ? product(mixed, layer.output, N, K * p, d, layer.outputBias ?? null) : mixed;
  const half = z.map((value, i) => value + added[i]);
  const normedHalf = layerNorm(half, N, layer.normSparsify);
  const rebuilt = product(normedHalf, layer.dictionary, N, d, d);
  const rest = normedHalf.map((value, i) => value - rebuilt[i]);
  const step = product(rest, layer.transposed, N, d, d).map((value) => layer.eta * value);
  const code = normedHalf.map((value, i) =>
    directions?.has(i % d) ? (directions.get?.(i % d) ?? 0) : Math.max(0, value + step[i] - layer.eta * lambda),
  );
  return { input: z, normed, w, attention, mixed, added, half, normedHalf, step, code };
}

// The forward pass of an image, bytes (C, H, W). Changes: `lambda` of all layers; `heads` and `directions`, Maps from a
// layer (from 0) to a set. Returns {layers, logits, scores}.
export function forward(net, bytes, { lambda, heads = new Map(), directions = new Map() } = {}) {
  let z = embed(net, bytes);
  const layers = net.layers.map((layer, l) => {
    const steps = runLayer(net, layer, z, { lambda, heads: heads.get(l), directions: directions.get(l) });
    z = steps.code;
    return steps;
  });
  const d = net.width;
  let pooled = z.slice(0, d);
  if (net.pool === "mean")
    pooled = pooled.map((_, j) => {
      let sum = 0;
      for (let i = 0; i < net.tokens; i++) sum += z[i * d + j];
      return sum / net.tokens;
    });
  if (net.eps.head !== null)
    pooled = layerNorm(pooled, 1, [net.get("head_norm.weight"), net.get("head_norm.bias"), net.eps.head]);
  const logits = product(pooled, net.get("fc.weight"), 1, d, net.classes, net.get("fc.bias"));
  return { layers, logits, scores: softmax(logits) };
}

// The forward pass of token IDs of a causal model, which ends in the logits of all next tokens, (N, V).
export function forwardText(net, ids, { directions = new Map() } = {}) {
  const d = net.width;
  const sized = { ...net, tokens: ids.length };
  const [embedding, pos] = [net.get("embedding"), net.get("pos")];
  let z = Float32Array.from(
    { length: ids.length * d },
    (_, i) => embedding[ids[Math.floor(i / d)] * d + (i % d)] + pos[i],
  );
  const layers = net.layers.map((layer, l) => {
    const steps = runLayer(sized, layer, z, { directions: directions.get(l) });
    z = steps.code;
    return steps;
  });
  if (net.eps.final !== null)
    z = layerNorm(z, ids.length, [net.get("final_norm.weight"), net.get("final_norm.bias"), net.eps.final]);
  return { layers, logits: product(z, embedding, ids.length, d, embedding.length / d) };
}

const rawLength = report.run.settings.raw_length ?? false;

// The coding rate R of tokens as rows, each scaled to length 1 unless the page measures raw lengths:
// 1/2 log det(I + d / (N eps^2) G), G the smaller Gram matrix. `first` and `width` select columns.
export function codingRate(x, rows, first, width, epsSquared) {
  const stride = x.length / rows;
  const unit = new Float64Array(rows * width);
  for (let i = 0; i < rows; i++) {
    let length = 0;
    for (let j = 0; j < width; j++) length += x[i * stride + first + j] ** 2;
    const scale = rawLength ? 1 : length > 0 ? 1 / Math.sqrt(length) : 0;
    for (let j = 0; j < width; j++) unit[i * width + j] = x[i * stride + first + j] * scale;
  }
  const n = Math.min(rows, width);
  const [along, across, inner] = rows <= width ? [width, 1, width] : [1, width, rows];
  const L = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let sum = 0;
      for (let k = 0; k < inner; k++) sum += unit[i * along + k * across] * unit[j * along + k * across];
      L[i * n + j] = (i === j ? 1 : 0) + (width / (rows * epsSquared)) * sum;
    }
  let rate = 0;
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let sum = L[i * n + j];
      for (let k = 0; k < j; k++) sum -= L[i * n + k] * L[j * n + k];
      L[i * n + j] = i === j ? Math.sqrt(sum) : sum / L[j * n + j];
      if (i === j) rate += Math.log(L[i * n + i]);
    }
  return rate;
}

// R^c: the sum over heads of the coding rates of projected tokens w (N, K p).
function subspaceRate(w, rows, heads, epsSquared) {
  const p = w.length / rows / heads;
  return Array.from({ length: heads }, (_, k) => codingRate(w, rows, k * p, p, epsSquared)).reduce((a, b) => a + b, 0);
}

const rates = new WeakMap();

// R^c before the compression, of LN(Z) U as in the published script and of Z U; and after it, of Z^{l+1/2} U.
export function layerRates(net, layer, steps, epsSquared = report.run.settings.eps_squared) {
  if (!rates.has(steps)) rates.set(steps, computeRates(net, layer, steps, epsSquared));
  return rates.get(steps);
}

function computeRates({ tokens, width }, { subspaces, heads, headDim }, { input, w, half }, epsSquared) {
  const of = (projected) => subspaceRate(projected, tokens, heads, epsSquared);
  const project = (x) => product(x, subspaces, tokens, width, heads * headDim);
  return { normed: of(w), before: of(project(input)), after: of(project(half)) };
}

// Why entries of a code are zero, as shares of the zeros: negative before the step, pushed below zero by the dictionary,
// or by the threshold. `on`: share of all entries that were negative before and are not zero. `left`: not zero.
export function reasons({ normedHalf, step, code }) {
  let [negative, dictionary, threshold, on, left] = [0, 0, 0, 0, 0];
  code.forEach((value, i) => {
    if (value > 0) {
      left++;
      if (normedHalf[i] <= 0) on++;
    } else if (normedHalf[i] <= 0) negative++;
    else if (normedHalf[i] + step[i] <= 0) dictionary++;
    else threshold++;
  });
  const zeros = code.length - left || 1;
  const shares = { negative: negative / zeros, dictionary: dictionary / zeros, threshold: threshold / zeros };
  return { ...shares, on: on / code.length, left: left / code.length };
}

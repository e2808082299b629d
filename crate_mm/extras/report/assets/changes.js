// What is changed in the model that runs here: lambda, and heads and directions that are switched off. In the address and
// in `state.off`: "h2.1-3,d4.17" is heads 1 to 3 of layer 2 and direction 17 of layer 4.

import { state } from "./state.js";

// The changes of the forward pass: {lambda, heads, directions}, Maps from a layer (from 0) to a set of numbers (from 0).
export function changes(off = state.off) {
  const result = { heads: new Map(), directions: new Map() };
  if (state.lambda !== null) result.lambda = state.lambda;
  for (const [, kind, layer, first, last] of off.matchAll(/([hd])(\d+)\.(\d+)(?:-(\d+))?/g)) {
    const sets = kind === "h" ? result.heads : result.directions;
    if (!sets.has(layer - 1)) sets.set(layer - 1, new Set());
    for (let n = Number(first); n <= Number(last ?? first) && n - first < 10000; n++) sets.get(layer - 1).add(n - 1);
  }
  return result;
}

export function isChanged() {
  return state.off !== "" || state.lambda !== null;
}

// The text of `state.off` after some are switched: `parts` is a list of ["h" or "d", layer, number], from 0. If all are
// off they are switched on, else off.
export function toggled(parts) {
  const { heads, directions } = changes();
  const setOf = (kind, layer) => {
    const sets = kind === "h" ? heads : directions;
    if (!sets.has(layer)) sets.set(layer, new Set());
    return sets.get(layer);
  };
  const on = parts.every(([kind, layer, number]) => setOf(kind, layer).has(number));
  for (const [kind, layer, number] of parts) {
    const set = setOf(kind, layer);
    if (on) set.delete(number);
    else set.add(number);
  }
  const text = (kind, sets) =>
    [...sets].flatMap(([layer, set]) =>
      runsOf([...set].sort((a, b) => a - b)).map((run) => `${kind}${layer + 1}.${run}`),
    );
  return [...text("h", heads), ...text("d", directions)].join();
}

// [0, 1, 2, 5] as ["1-3", "6"].
function runsOf(numbers) {
  const runs = [];
  for (const n of numbers) {
    const last = runs.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([first, last]) => (first === last ? `${first + 1}` : `${first + 1}-${last + 1}`));
}

// What is changed, as words: "head 2 of layer 3", "the 4 heads of layer 1", "direction 7 of layer 4", "lambda 1".
export function changeWords(net) {
  const { heads, directions } = changes();
  const words = [];
  for (const [layer, set] of heads) {
    if (!set.size) continue;
    const all = set.size === net.layers[layer]?.heads;
    const list = [...set].sort((a, b) => a - b).map((k) => k + 1);
    if (list.some((k) => !(k <= net.layers[layer]?.heads))) continue;
    const which = all ? `the ${set.size} heads` : list.length === 1 ? `head ${list[0]}` : `heads ${list.join(", ")}`;
    words.push(`${which} of layer ${layer + 1}`);
  }
  for (const [layer, set] of directions) {
    const list = [...set].sort((a, b) => a - b).map((j) => j + 1);
    if (list.length && net.layers[layer] && list.at(-1) <= net.width)
      words.push(`direction${list.length > 1 ? "s" : ""} ${list.join(", ")} of layer ${layer + 1}`);
  }
  return words;
}

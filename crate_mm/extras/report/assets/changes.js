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
  const { heads: h, directions: d } = changes();
  const sets = { h, d };
  const on = parts.every(([kind, layer, number]) => sets[kind].get(layer)?.has(number));
  for (const [kind, layer, number] of parts) {
    const set = sets[kind].get(layer) ?? new Set();
    sets[kind].set(layer, set);
    set[on ? "delete" : "add"](number);
  }
  const text = (kind) =>
    [...sets[kind]].flatMap(([layer, set]) => runsOf(sorted(set)).map((run) => `${kind}${layer + 1}.${run}`));
  return [...text("h"), ...text("d")].join();
}

const sorted = (set) => [...set].sort((a, b) => a - b);

// [0, 1, 2, 5] as ["1-3", "6"].
function runsOf(numbers) {
  const runs = [];
  for (const n of numbers) {
    if (runs.at(-1)?.[1] === n) runs.at(-1)[1] = n + 1;
    else runs.push([n + 1, n + 1]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`));
}

// What is switched off, as words: "head 2 of layer 3", "the 4 heads of layer 1", "direction 7 of layer 4".
export function changeWords(net) {
  const { heads, directions } = changes();
  const words = (sets, kind, mostOfLayer) =>
    [...sets].flatMap(([layer, set]) => {
      const [most, list] = [net.layers[layer] ? mostOfLayer(net.layers[layer]) : 0, sorted(set).map((n) => n + 1)];
      if (!list.length || list.at(-1) > most) return [];
      const which = `${kind}${list.length > 1 ? "s" : ""} ${list.join(", ")}`;
      return [`${list.length === most && most > 1 ? `the ${most} ${kind}s` : which} of layer ${layer + 1}`];
    });
  return [...words(heads, "head", (layer) => layer.heads), ...words(directions, "direction", () => net.width)];
}

// Sentences computed from the page's numbers: numbers in, text out. A change "counts" if it is larger than a tolerance and
// than three standard errors. See crate_mm/analysis/README.md.

import { countOf, percent, short } from "./numbers.js";

const FEW = 8; // images below which a sentence gives numbers without a verb

function standardError({ std, count }) {
  return std === null || count < 2 ? Infinity : std / Math.sqrt(count);
}

// Whether a paired difference {mean, std, count} counts.
function counts(difference, tolerance) {
  return (
    Boolean(difference) &&
    Math.abs(difference.mean) >= tolerance &&
    Math.abs(difference.mean) > 3 * standardError(difference)
  );
}

// The tolerance of a measure: 2 % of the room between its bounds, or of its first value; 0.01 of shares; 2 % of the
// largest mean of the objective.
function toleranceOf(kind, means, bounds = null) {
  if (kind === "share") return 0.01;
  if (kind === "objective") return 0.02 * Math.max(...means.map(Math.abs));
  return bounds ? 0.02 * (bounds[1] - bounds[0]) : 0.02 * Math.abs(means[0]);
}

// The shape of a curve: flat, falls, rises, valley, hill, wavers; null for one layer. `last` is the paired difference of
// the last layer to the first.
function shapeOf(means, last, tolerance) {
  if (means.length < 2) return null;
  const [first, end] = [means[0], means.at(-1)];
  const [low, high] = [Math.min(...means), Math.max(...means)];
  if (high - low < tolerance) return "flat";
  const inside = means.every((x) => x <= Math.max(first, end) + tolerance && x >= Math.min(first, end) - tolerance);
  if (counts(last, tolerance) && inside) return end < first ? "falls" : "rises";
  const inner = means.slice(1, -1);
  if (inner.some((x) => x < Math.min(first, end) - tolerance) && high <= Math.max(first, end) + tolerance)
    return "valley";
  if (inner.some((x) => x > Math.max(first, end) + tolerance) && low >= Math.min(first, end) - tolerance) return "hill";
  return "wavers";
}

const KINDS = { __proto__: null, sparsity: "share", objective: "objective" }; // of other measures: "rate"

// A measure by layer, or null: the entries {mean, std, count, from_first, ...} of the layers that define it, of which F is
// the first and L the last; their means, the least and the largest of them and in which layers; its shape; and as texts
// the first mean, a, and the last, b. `few` is the sentence where there are too few images to say more.
function curveOf(model, name, what) {
  const numbers = model.layers.flatMap((layer, l) => (layer.measures[name] ? [l + 1] : []));
  if (!numbers.length) return null;
  const entries = numbers.map((number) => model.layers[number - 1].measures[name]);
  const means = entries.map(({ mean }) => mean);
  const kind = KINDS[name] ?? "rate";
  const bounds = model.bounds?.[name] ?? null;
  const show = kind === "share" ? percent : short;
  const [F, L, low, high] = [numbers[0], numbers.at(-1), Math.min(...means), Math.max(...means)];
  const [a, b] = [show(means[0]), show(means.at(-1))];
  const at = (mean) => numbers[means.indexOf(mean)];
  const tolerance = toleranceOf(kind, means, bounds);
  const by = L === F ? a : `${a} in layer ${F} and ${b} in layer ${L}`;
  const few = `${what} is ${by}, on ${countOf(entries[0].count, "image")}: too few to say more.`;
  return {
    ...{ entries, means, F, L, low, high, kind, bounds, show, a, b, tolerance },
    ...{ lowAt: at(low), highAt: at(high), last: entries.at(-1) },
    shape: shapeOf(means, entries.at(-1).from_first, tolerance),
    change: means[0] > 0 ? ` by ${percent(Math.abs(means.at(-1) - means[0]) / means[0])}` : "",
    few: entries[0].count < FEW ? few : null,
  };
}

// The fewest last layers in which 75 % of a change happens.
function lateLayers(means) {
  const total = means.at(-1) - means[0];
  for (let k = 1; k < means.length; k++) if ((means.at(-1) - means[means.length - 1 - k]) / total >= 0.75) return k;
  return means.length;
}

// R^c by layer.
function rateSentence(model) {
  const M = model.label;
  const curve = curveOf(model, "rc_half", `R\u1d9c of ${M}`);
  if (!curve || curve.few) return curve?.few;
  const { means, F, L, a, b, low, high, lowAt, highAt, shape, change, bounds } = curve;
  const k = lateLayers(means);
  const late = k <= means.length / 3 ? `; most of the change is in the last ${k === 1 ? "layer" : `${k} layers`}` : "";
  const near = bounds && means.every((x) => bounds[1] - x <= 0.05 * (bounds[1] - bounds[0]));
  const ceiling = near
    ? ` That is near the ceiling, ${short(bounds[1])}: in each subspace the tokens are nearly at right angles.`
    : "";
  const by = {
    null: `In ${M} R\u1d9c is ${a} nats in its one layer.`,
    falls: `From layer ${F} to layer ${L} of ${M}, R\u1d9c falls${change}: ${a} to ${b} nats${late}.`,
    rises: `From layer ${F} to layer ${L} of ${M}, R\u1d9c rises${change}, ${a} to ${b} nats: the opposite of what CRATE is derived for.`,
    flat: `In ${M} R\u1d9c does not change by more than ${short(high - low)} nats: ${a} in layer ${F}, ${b} in layer ${L}.${ceiling}`,
    valley: `${M} lowers R\u1d9c from ${a} to ${short(low)} in layer ${lowAt}, then lets it rise to ${b}.`,
    hill: `${M} lets R\u1d9c rise from ${a} to ${short(high)} in layer ${highAt}, then lowers it to ${b}.`,
    wavers: `In ${M} R\u1d9c goes up and down between ${short(low)} (layer ${lowAt}) and ${short(high)} (layer ${highAt}), and ends at ${b}.`,
  };
  return by[shape];
}

// What each compression step does to the R^c of the tokens that it takes in.
function stepsSentence(model) {
  const steps = model.layers
    .map(({ measures }, l) => ({
      l,
      before: measures.rc_z,
      after: measures.rc_half,
      change: measures.rc_half?.from_before,
    }))
    .filter(({ change }) => change);
  if (!steps.length || steps[0].change.count < FEW) return null;
  const lower = steps.filter(({ change }) => change.mean < 0 && -change.mean > 3 * standardError(change));
  const [L, k] = [steps.length, lower.length];
  let who = `${k} of the ${L} compression steps lower${k === 1 ? "s" : ""} the R\u1d9c of ${k === 1 ? "its" : "their"} input`;
  if (k === 0) who = `None of the ${L} compression steps lowers the R\u1d9c of its input`;
  if (k === L) who = `All ${L} compression steps lower the R\u1d9c of their input`;
  if (L === 1) who = `The one compression step ${k ? "lowers" : "does not lower"} the R\u1d9c of its input`;
  const mean = steps.reduce((sum, { change }) => sum + change.mean, 0) / L;
  const most = steps.reduce((best, step) => (Math.abs(step.change.mean) > Math.abs(best.change.mean) ? step : best));
  const where = L === 1 ? "" : `, most in layer ${most.l + 1}: ${short(most.before.mean)} to ${short(most.after.mean)}`;
  return `${who}; a step changes R\u1d9c by ${short(mean)} nats on average${where}.`;
}

// The share of nonzero entries of the code.
function entriesSentence(model) {
  const M = model.label;
  const curve = curveOf(model, "sparsity", `The share of entries that ${M} keeps`);
  if (!curve || curve.few) return curve?.few;
  const { F, L, a, b, lowAt, highAt, shape, show } = curve;
  const [low, high] = [show(curve.low), show(curve.high)];
  const by = {
    null: `${M} keeps ${a} of the entries in its one layer.`,
    falls: `${M} keeps ${a} of the entries in layer ${F} and ${b} in layer ${L}.`,
    rises: `${M} keeps ${a} of the entries in layer ${F} and ${b} in layer ${L}: its code gets fuller with depth.`,
    flat: `${M} keeps ${low === high ? `about ${low}` : `${low} to ${high}`} of the entries in every layer.`,
    valley: `${M} keeps ${a} of the entries in layer ${F}, ${low} in layer ${lowAt} and ${b} in layer ${L}.`,
    hill: `${M} keeps ${a} of the entries in layer ${F}, ${high} in layer ${highAt} and ${b} in layer ${L}.`,
    wavers: `${M} keeps between ${low} (layer ${lowAt}) and ${high} (layer ${highAt}) of the entries, and ends at ${b}.`,
  };
  const zeros = model.layers.at(-1).code?.zeros;
  if (!zeros) return by[shape];
  const little = zeros.threshold < 0.05 ? " The threshold, and so lambda, does little here." : "";
  return `${by[shape]} Of the zeros in layer ${model.layers.length}, ${percent(zeros.negative)} were negative before the step.${little}`;
}

// R of all tokens: the objective asks for a large R.
function wholeRateSentence(model) {
  const M = model.label;
  const curve = curveOf(model, "r_out", `R of ${M}`);
  if (!curve || curve.few) return curve?.few;
  const { F, L, a, b, low, high, shape, change } = curve;
  const by = {
    null: `R of ${M} is ${a} nats in its one layer.`,
    falls: `As a whole the tokens of ${M} become alike, too: R falls${change}, from ${a} to ${b} nats. The objective asks for the opposite.`,
    rises: `As a whole the tokens of ${M} become more different: R is ${a} nats in layer ${F}, ${b} in layer ${L}.`,
    flat: `As a whole the tokens of ${M} stay as different as they were: R is ${a} nats in layer ${F}, ${b} in layer ${L}.`,
  };
  return by[shape] ?? `R of ${M} lies between ${short(low)} and ${short(high)} nats, and ends at ${b}.`;
}

// The objective in the last layer.
function objectiveSentence(model) {
  const curve = curveOf(model, "objective", `The objective of ${model.label}`);
  if (!curve || curve.few) return curve?.few;
  const ends = `The objective of ${model.label} ends at ${curve.b}; larger is better.`;
  const [whole, parts] = [model.bounds?.r_out, model.bounds?.rc_out];
  if (!whole || !parts || whole[1] >= parts[0]) return ends;
  return `${ends} R \u2212 R\u1d9c is below 0 whatever this model does: R is at most ${short(whole[1])}, R\u1d9c at least ${short(parts[0])}.`;
}

const BETTER = { rc_half: -1, sparsity: -1, objective: 1, r_out: 1 };

// A trained model beside an untrained one, by the last layer of a measure.
function againstUntrained(model, untrained, name) {
  const [own, other] = [curveOf(model, name), curveOf(untrained, name)];
  if (!own || !other || own.few || other.few) return null;
  const { kind, show, bounds, means } = own;
  const tolerance = toleranceOf(kind, kind === "objective" ? [...means, ...other.means] : means, bounds);
  const error = 3 * Math.hypot(standardError(own.last), standardError(other.last));
  const [difference, u] = [own.last.mean - other.last.mean, show(other.last.mean)];
  if (Math.abs(difference) < tolerance || Math.abs(difference) <= error)
    return `An untrained model has ${u}; differences below ${show(Math.max(tolerance, error))} do not count.`;
  if (difference * BETTER[name] > 0)
    return `An untrained model has ${u}: training ${difference > 0 ? "raises" : "lowers"} it, as the derivation asks.`;
  const gap = name === "objective" ? gapSentence(model, untrained) : "";
  return `An untrained model has ${u}: by this measure the untrained model is better.${gap}`;
}

// Which term of the objective makes most of the gap to a better, untrained model.
function gapSentence(model, untrained) {
  const last = (m, name) => m.layers.at(-1).measures[name]?.mean;
  const gap = last(model, "objective") - last(untrained, "objective");
  const terms = {
    R: last(model, "r_out") - last(untrained, "r_out"),
    "R\u1d9c": last(untrained, "rc_out") - last(model, "rc_out"),
  };
  const rest = gap - terms.R - terms["R\u1d9c"];
  const parts = [...Object.entries(terms), ["the number of nonzero entries", rest]];
  const main = parts.find(([, part]) => part / gap >= 0.6);
  const which = main ? `Most of the gap is ${main[0]}.` : "No single term explains the gap.";
  return ` ${which}${model.labelled ? " Training looked at the labels, not at this number." : ""}`;
}

// How many answers are right, with Wilson's interval of 95 %.
function rightSentence(model, classes) {
  const [k, total] = [model.right, model.labelled];
  if (!model.predicted || !total) return null;
  const [z, p] = [1.96, model.right / model.labelled];
  const middle = (p + z ** 2 / (2 * total)) / (1 + z ** 2 / total);
  const half = (z / (1 + z ** 2 / total)) * Math.sqrt((p * (1 - p)) / total + z ** 2 / (4 * total ** 2));
  const [low, high] = [Math.max(middle - half, 0), Math.min(middle + half, 1)];
  let sentence = `${model.label} is right for ${k} of ${countOf(total, "image")} (${percent(p)}, 95\u00a0% interval ${short(100 * low)} to ${short(100 * high)}\u00a0%).`;
  if (low <= 1 / classes) sentence += ` No better than guessing among ${classes}.`;
  else if (model.smoothing)
    sentence += ` Label smoothing of ${model.smoothing} in training aims at ${percent(1 - model.smoothing + model.smoothing / classes)} for the right class.`;
  return sentence;
}

// Where a token looks: weights over all N tokens or blocks of them, their names, and the weights in times uniform.
export function attentionSentence(head, token, weights, names, times = weights.map((a) => a * weights.length)) {
  const N = weights.length;
  const entropy = -weights.reduce((sum, a) => sum + (a > 0 ? a * Math.log(a) : 0), 0);
  const spread = Math.exp(entropy);
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]);
  if (spread >= 0.9 * N) return `Head ${head}: ${token} takes nearly the same from all ${N} tokens.`;
  if (spread <= 1.5) return `Head ${head}: ${token} takes almost all from ${names[order[0]]}.`;
  const second =
    weights[order[1]] >= weights[order[0]] / 2 ? ` and ${names[order[1]]} (${short(times[order[1]])})` : "";
  return `Head ${head}: ${token} takes most from ${names[order[0]]} (${short(times[order[0]])} times uniform)${second}; it is spread over about ${short(spread)} of ${N} tokens.`;
}

// Which heads look at different tokens: rows of attention from one token.
export function headsSentence(rows) {
  let most = [-1, 0, 0];
  let [sum, pairs] = [0, 0];
  for (let i = 0; i < rows.length; i++)
    for (let j = i + 1; j < rows.length; j++) {
      const difference = rows[i].reduce((total, a, k) => total + Math.abs(a - rows[j][k]), 0) / 2;
      sum += difference;
      pairs++;
      if (difference > most[0]) most = [difference, i, j];
    }
  if (!pairs) return null;
  return sum / pairs < 0.1
    ? "All heads look at nearly the same tokens here."
    : `Heads ${most[1] + 1} and ${most[2] + 1} differ most.`;
}

// Who uses a direction: share of tokens, and by class the shares and counts of uses.
export function directionSentence({ number, share, images, classes = [] }) {
  if (share === 0) return `None of ${countOf(images, "image")} uses direction ${number}.`;
  const used = `${percent(share)} of tokens use it${share >= 0.5 ? ": a background that most share" : ""}.`;
  if (!classes.length) return used;
  const best = classes.reduce((a, b) => (b.share > a.share ? b : a));
  if (best.share >= 2 * share && best.uses >= 30)
    return `${used} Class ${best.name} uses it ${short(best.share / share)} times as often as the average.`;
  return `${used} No class stands out.`;
}

// How different the heads' subspaces are, beside random directions of d dimensions.
export function subspacesSentence(label, incoherence, random) {
  if (incoherence === null) return `${label} has one head: there is none to compare.`;
  const ratio = incoherence / random;
  if (ratio < 1.1)
    return `The basis vectors of ${label}'s heads are nearly as different as random vectors: a mean |cosine| of ${short(incoherence)}, against ${short(random)}.`;
  return `The basis vectors of ${label}'s heads are ${short(ratio)} times as alike as random vectors.`;
}

// How much the maps of two models differ: the mean over tokens and heads of |x_A - x_B|, in times uniform, of each of `layers`.
export function mapsSentence(a, b, differences, layers) {
  const mean = differences.reduce((sum, x) => sum + x, 0) / differences.length;
  const [low, high] = [Math.min(...differences), Math.max(...differences)];
  const at = (value) => layers[differences.indexOf(value)];
  if (high - low < 0.2 * mean || differences.length === 1)
    return `The maps of ${a} and ${b} differ as much in every layer, on average by ${short(mean)} times uniform.`;
  return `The maps of ${a} and ${b} differ most in layer ${at(high)} (on average by ${short(high)} times uniform) and least in layer ${at(low)}.`;
}

// The sentences of a measure, of the chosen models and an untrained one.
export function measureSentences(name, models, untrained) {
  const of = {
    __proto__: null, // a user's measure may be called "toString"
    rc_half: rateSentence,
    sparsity: entriesSentence,
    r_out: wholeRateSentence,
    objective: objectiveSentence,
  }[name];
  const sentences = [];
  for (const model of models) {
    if (!of) continue;
    sentences.push(of(model));
    if (name === "rc_half") sentences.push(stepsSentence(model));
    if (untrained && !model.untrained) sentences.push(againstUntrained(model, untrained, name));
  }
  return sentences.filter(Boolean);
}

// The verdict at the top, of model A: is it right, what becomes of the whole, what of R^c.
export function verdict(model, untrained, classes) {
  const sentences = [rightSentence(model, classes)];
  if (untrained?.predicted && untrained.labelled && model.predicted && !model.untrained)
    sentences.push(`An untrained model is right for ${percent(untrained.right / untrained.labelled)}.`);
  sentences.push(objectiveSentence(model));
  if (untrained && !model.untrained) sentences.push(againstUntrained(model, untrained, "objective"));
  sentences.push(rateSentence(model));
  if (!untrained) sentences.push("Name `random` too, to see what the architecture does before it is trained.");
  return sentences.filter(Boolean);
}

// All of them by name, for tests.
export const SENTENCES = {
  againstUntrained,
  attentionSentence,
  counts,
  directionSentence,
  entriesSentence,
  headsSentence,
  mapsSentence,
  measureSentences,
  objectiveSentence,
  rateSentence,
  rightSentence,
  shapeOf,
  stepsSentence,
  subspacesSentence,
  verdict,
  wholeRateSentence,
};

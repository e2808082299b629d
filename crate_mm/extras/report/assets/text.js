// The page of language models: a text as tokens, the directions of the dictionary, and the objective by layer.

import { part, report, unpack } from "./data.js";
import { button, div, h, note, say, says, select } from "./dom.js";
import { forwardText, loadNet, softmax } from "./model.js";
import { countOf, number, percent, short } from "./numbers.js";
import { againstUntrained, measureSentences, objectiveSentence, rateSentence } from "./sentences.js";
import { lineChart } from "./svg.js";

const { models, vocabulary } = report;
const [BEFORE, AFTER] = [28, 14]; // tokens of a snippet around the one that uses a direction
const LISTED = 12; // entries of a token's code that are listed
const WAIT = 250; // milliseconds after the last key before a typed text is computed
const MEASURES = {
  __proto__: null, // a user's measure may be called "constructor"
  rc_half: "Rᶜ after compression",
  sparsity: "Nonzero entries of the code",
  objective: "Objective, R − Rᶜ − λ‖Z‖₀",
  r_out: "R, the rate of all tokens",
};
const untrained = models.find((model) => model.untrained) ?? null;
const state = { model: 0, window: 0, ids: [], at: 0, layer: 0, head: 0, direction: null, value: null };
let net = null; // the running model's weights
let look = null; // of the text: {attention(layer, head, token), next(token), code(layer, token)}
let changed = null; // the same with the chosen direction set to a value

const textOf = (id) => vocabulary[id] ?? `[${id}]`;
const shownText = (id) => ({ "\n": "⏎\n", "\t": "⇥\t" })[textOf(id)] ?? textOf(id);
const quoted = (id) => ({ " ": "space", "\n": "line end", "\t": "tab" })[textOf(id)] ?? `“${textOf(id)}”`;

const trainedBefore = (i) => models.slice(0, i).filter((model) => !model.untrained).length;

// A model's dot, letter and label, as in the charts.
const nameOf = ({ label }, i) => [
  h("span", { class: "dot", style: { color: styleOf(i).color } }),
  h("b", {}, styleOf(i).letter),
  ` ${label}`,
];

// The colour of models, in the order of the page.
const styleOf = (i) => ({
  color: models[i].untrained
    ? "var(--untrained)"
    : ["var(--a)", "var(--b)", "var(--other)"][Math.min(trainedBefore(i), 2)],
  dash: models[i].untrained ? "2 4" : null,
  square: false,
  letter: String.fromCharCode(65 + i),
});

// What a model says of the current text: computed here if it runs here, or else what the page's data have of a window.
async function lookAt(directions = new Map()) {
  const model = models[state.model];
  if (model.running) {
    net ??= await loadNet(model.running);
    const { layers, logits } = forwardText(net, state.ids, { directions });
    const [N, V, d] = [state.ids.length, logits.length / state.ids.length, net.width];
    return {
      attention: (l, k, i) => layers[l].attention.subarray((k * N + i) * N, (k * N + i) * N + i + 1),
      next: (i) => [...softmax(logits.subarray(i * V, (i + 1) * V)).entries()].sort((a, b) => b[1] - a[1]).slice(0, 6),
      probability: (i, id) => softmax(logits.subarray(i * V, (i + 1) * V))[id],
      code: (l, i) => layers[l].code.subarray(i * d, (i + 1) * d),
    };
  }
  const { attention, next } = model.looks[state.window];
  const values = attention && (await unpack(attention));
  return {
    attention: (l, k, i) => (values ? part(values, attention.shape, l, k, i).subarray(0, i + 1) : null),
    next: (i) => next[i],
    probability: () => null,
    code: () => null,
  };
}

function headCount(model) {
  return model.running ? model.running.heads[state.layer] : (model.looks[0].attention?.shape[1] ?? 0);
}

function chooseWindow(window) {
  const ids = report.texts[report.windows[window].position];
  Object.assign(state, { window, ids, at: Math.min(state.at || Math.floor(ids.length / 2), ids.length - 1) });
}

// A text of a reader, by bytes; what does not fit into the positions of the model is left out.
function chooseText(text) {
  const bytes = [...new TextEncoder().encode(text)];
  const ids = [0, ...bytes].slice(0, models[state.model].context);
  Object.assign(state, { window: null, typed: text, ids, at: ids.length - 1 });
  return bytes.length + 1 - ids.length;
}

async function refresh() {
  look = await lookAt();
  const { direction, value, layer } = state;
  const isSet = direction !== null && value !== null && models[state.model].running;
  changed = isSet ? await lookAt(new Map([[layer, new Map([[direction, value]])]])) : null;
  renderText();
  await renderDirections();
}

function choices() {
  const model = models[state.model];
  const list = (label, key, options) => {
    const box = select(key, null, [...options.entries()], state[key] ?? -1, (value) => choose(key, value));
    return h("label", {}, `${label} `, box);
  };
  const numbers = (count) => Array.from({ length: count }, (_, i) => i + 1);
  const first = ({ position }) => report.texts[position].slice(0, BEFORE).map(shownText).join("");
  const texts = list(
    "Text",
    "window",
    report.windows.map((window, i) => `${i + 1}: ${first(window)}…`),
  );
  if (state.window === null) texts.lastChild.append(h("option", { value: -1, selected: true }, "your text"));
  return div(
    "choices",
    models.length > 1 &&
      list(
        "Model",
        "model",
        models.map(({ label }) => label),
      ),
    texts,
    list("Layer", "layer", numbers(model.layers.length)),
    headCount(model) > 0 && list("Head", "head", numbers(headCount(model))),
  );
}

function choose(key, value) {
  if (key === "window") chooseWindow(Number(value));
  else state[key] = Number(value);
  if (key === "model") {
    if (state.window === null) chooseWindow(0);
    state.layer = Math.min(state.layer, models[state.model].layers.length - 1);
  }
  if (key === "model" || key === "layer") Object.assign(state, { direction: null, value: null });
  state.head = Math.min(state.head, Math.max(headCount(models[state.model]) - 1, 0));
  refresh();
}

// What the chosen token looks at, in words.
export function lookSentence(row, ids, at, head, layer) {
  if (at === 0) return `The first token of a text can look only at itself.`;
  const best = row.indexOf(Math.max(...row));
  const where = best === at ? "itself" : `${quoted(ids[best])}, ${countOf(at - best, "token")} before`;
  const times = row[best] * (at + 1);
  if (times < 2) return `Head ${head + 1} of layer ${layer + 1} spreads ${quoted(ids[at])} over all earlier tokens.`;
  return `In head ${head + 1} of layer ${layer + 1}, ${quoted(ids[at])} looks most at ${where}: ${percent(row[best])}, ${short(times)} times an equal share.`;
}

function renderText() {
  const [body, model] = [document.querySelector("#look > .body"), models[state.model]];
  const row = look.attention(state.layer, state.head, state.at);
  const most = row ? Math.max(...row) : 1;
  const spans = state.ids.map((id, i) => {
    const share = row && i <= state.at ? Math.sqrt(row[i] / most) : 0;
    const color = share > 0.02 ? `color-mix(in srgb, var(--accent) ${Math.round(75 * share)}%, transparent)` : "none";
    const of = { "data-i": i, "aria-current": i === state.at ? "true" : null, style: { background: color } };
    return h("span", of, shownText(id));
  });
  const box = { class: "tokens", tabindex: 0, role: "application", "aria-label": "Tokens of the text" };
  const text = h("div", box, spans);
  text.addEventListener("click", ({ target }) => target.dataset.i && moveTo(Number(target.dataset.i)));
  text.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    moveTo(state.at + by);
  });
  const focused = document.activeElement?.classList.contains("tokens");
  const scroll = body.querySelector(".tokens")?.scrollTop ?? 0;
  const sentence = row
    ? lookSentence(row, state.ids, state.at, state.head, state.layer)
    : (model.undefined.attention ?? "The page has no attention of this text.");
  body.replaceChildren(
    choices(),
    h("p", { class: "sentence", id: "attention-sentence" }, sentence),
    div("columns", text, nextBox(model)),
    model.running && model.is_bytes ? typing() : note(model.running ? "" : (model.why_not_running ?? "")),
    report.vocabulary_note ? note(report.vocabulary_note) : "",
  );
  text.scrollTop = scroll;
  if (focused) text.focus({ preventScroll: true });
  say(sentence);
}

async function moveTo(at) {
  state.at = Math.min(Math.max(at, 0), state.ids.length - 1);
  renderText();
  renderDirections();
}

// The most likely next tokens, with a second bar if a direction is set to a value.
function nextBox(model) {
  const [rows, follows] = [look.next(state.at), state.ids[state.at + 1]];
  const after = changed ? new Map(changed.next(state.at)) : null;
  const ids = [...new Set([...rows.map(([id]) => id), ...(after ? [...after.keys()].slice(0, 3) : [])])];
  const shareOf = (id) => new Map(rows).get(id) ?? look.probability(state.at, id) ?? 0;
  const changedOf = (id) => after.get(id) ?? changed.probability(state.at, id);
  const bar = (share) => h("i", { style: { width: `${100 * share}%` } });
  const lines = ids.map((id) => {
    const name = h("td", {}, h("code", {}, quoted(id)), id === follows ? " ✓" : "");
    const shares = after ? [shareOf(id), changedOf(id)] : [shareOf(id)];
    const told = shares.map((share) => percent(share)).join(" → ");
    return h("tr", {}, name, h("td", {}, shares.map(bar)), h("td", {}, told));
  });
  const title = `${model.label}: the token after ${quoted(state.ids[state.at])}`;
  const goesOn =
    follows === undefined
      ? "The text ends here."
      : `The text goes on with ${quoted(follows)}${ids.includes(follows) ? ", marked ✓" : ""}.`;
  const second = changed
    ? ` Orange: with direction ${state.direction + 1} at ${short(state.value)} for all tokens.`
    : "";
  return div(null, h("h3", {}, title), h("table", { class: "next" }, h("tbody", {}, lines)), note(goesOn + second));
}

function typing() {
  const rest = note("");
  const box = h("textarea", { rows: 2, id: "own-text", placeholder: "def " });
  if (state.window === null) box.value = state.typed;
  let timer = null;
  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const left = box.value ? chooseText(box.value) : (chooseWindow(0), 0);
      const place = box.selectionStart;
      await refresh();
      const again = document.getElementById("own-text");
      again.focus({ preventScroll: true });
      again.setSelectionRange(place, place);
      if (left > 0)
        again.nextSibling.textContent = `The model has ${models[state.model].context} positions: the last ${countOf(left, "byte")} are left out.`;
    }, WAIT);
  });
  return div("choices", h("label", {}, "Your own text: the model runs in this page", box, rest));
}

async function renderDirections() {
  const [body, model] = [document.querySelector("#directions > .body"), models[state.model]];
  const { code } = model.layers[state.layer];
  if (!code) {
    body.replaceChildren(h("p", { class: "none" }, model.undefined.code ?? "This layer has no sparse code."));
    return;
  }
  const shares = await unpack(code.share);
  if (code !== models[state.model].layers[state.layer].code) return; // another was chosen meanwhile
  const values = look.code(state.layer, state.at);
  const known = new Map(code.directions.map((direction) => [direction.number, direction]));
  const used = values ? [...values.entries()].filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]) : [];
  const listed = values ? used.slice(0, LISTED) : code.directions.slice(0, LISTED).map(({ number: j }) => [j, null]);
  // At first the rarest of them: those that most tokens use stand for little.
  const byShare = listed.filter(([j]) => known.has(j)).sort((a, b) => shares[a[0]] - shares[b[0]]);
  state.direction ??= (byShare[0] ?? listed[0] ?? [0])[0];
  const pick = (direction) => (Object.assign(state, { direction, value: null }), refresh());
  const entries = listed.map(([j, value]) => {
    const text = value === null ? `${j + 1}` : `${j + 1}: ${short(value)}`;
    return button(`direction-${j}`, text, () => pick(j), j === state.direction);
  });
  const intro = values
    ? `In layer ${state.layer + 1}, ${used.length} of ${values.length} entries of the code of ${quoted(state.ids[state.at])} are not 0 (${percent(used.length / values.length)}). The largest, direction and amount:`
    : `Directions of layer ${state.layer + 1}:`;
  const max = shares.length;
  const other = h("input", { type: "number", min: 1, max, value: state.direction + 1 });
  other.addEventListener("change", () => pick(Math.min(Math.max(Math.trunc(Number(other.value)) || 1, 1), max) - 1));
  body.replaceChildren(
    says(null, intro),
    div("choices", div("entries", entries), h("label", {}, "Direction ", other)),
    ...describe(model, shares[state.direction], known.get(state.direction), values).filter(Boolean),
  );
}

// Where a direction is used, and a slider that sets it.
function describe(model, share, direction, values) {
  const j = state.direction;
  const density =
    share === 0
      ? `No token of the text uses direction ${j + 1}.`
      : `${percent(share)} of all tokens use direction ${j + 1}.`;
  const list = (title, rows) => {
    const items = rows.map(([position, at, value]) => snippet(position, at, value));
    return div(null, h("h4", {}, title), h("ol", { class: "snippets" }, items));
  };
  const slider = model.running ? steering(direction, values?.[j] ?? 0) : null;
  const none =
    share === 0 ? "It has no examples." : "The page keeps examples of the most and least used directions only.";
  const examples = () => [list("Uses it most", direction.top), list("In the middle of its uses", direction.middle)];
  return [
    says("density", density),
    direction?.top.length ? div("columns", examples()) : h("p", { class: "none" }, none),
    slider,
  ];
}

function snippet(position, at, value) {
  const ids = report.texts[position];
  const flat = (from, to) =>
    ids.slice(Math.max(from, 0), to).map(shownText).join("").replaceAll("\n", " ").replaceAll("\t", " ");
  return h(
    "li",
    { title: `entry ${number(value)}` },
    flat(at - BEFORE, at)
      .slice(-BEFORE)
      .padStart(BEFORE),
    h("mark", {}, flat(at, at + 1)),
    flat(at + 1, at + 1 + AFTER),
  );
}

// Set the direction's entry of all tokens, in this layer, to a value.
function steering(direction, own) {
  const most = Math.max(...(direction?.top ?? []).map(([, , value]) => value), own, 0.1);
  const box = h("input", { type: "range", min: 0, max: 3 * most, step: "any", value: state.value ?? own, id: "steer" });
  const label = (value) => (value === null ? "as the layer computes it" : value === 0 ? "off" : short(value));
  const output = h("output", {}, label(state.value));
  box.addEventListener("input", () => (output.textContent = label(Number(box.value))));
  box.addEventListener("change", () => {
    state.value = Number(box.value);
    refresh().then(() => document.getElementById("steer")?.focus({ preventScroll: true }));
  });
  const effect = () => effectSentence(look.next(state.at), changed.next(state.at), state.ids[state.at]);
  const set = (text, value) => button(text, text, () => ((state.value = value), refresh()));
  return div(
    "choices",
    h("label", {}, `Set direction ${state.direction + 1} for all tokens: `, box, " ", output),
    set("switch off", 0),
    set("as computed", null),
    changed && says("effect", effect()),
  );
}

// What a set direction does to the next token.
export function effectSentence(before, after, id) {
  const [[a, p], [b, q]] = [before[0], after[0]];
  if (a === b)
    return `After ${quoted(id)}, ${quoted(a)} stays the most likely token: ${percent(p)} before, ${percent(q)} now.`;
  return `After ${quoted(id)}, the most likely token was ${quoted(a)} (${percent(p)}); now it is ${quoted(b)} (${percent(q)}).`;
}

function renderObjective() {
  const names = Object.keys(MEASURES).filter((name) => models.some((m) => m.layers.some((l) => name in l.measures)));
  const trained = models.filter((model) => !model.untrained);
  const panels = names.map((name) => {
    const sentences = measureSentences(name, trained, untrained).join(" ");
    const chart = h("div", { class: "chart", "data-chart": name });
    return div("measure", h("h3", {}, MEASURES[name]), chart, says(null, sentences));
  });
  const lacks = models.flatMap(({ label, layers }) => {
    const without = names.filter((name) => layers.every((layer) => !(name in layer.measures)));
    return without.length
      ? [note(`Not defined for ${label}: ${without.map((name) => MEASURES[name]).join("; ")}.`)]
      : [];
  });
  const legend = models.map((model, i) => h("span", {}, nameOf(model, i)));
  const all = div("four measures", panels);
  document.querySelector("#objective > .body").replaceChildren(h("p", { class: "legend" }, legend), ...lacks, all);
  for (const [i, name] of names.entries()) {
    const point = ({ measures }, l) => {
      if (!measures[name]) return [];
      const { mean, std } = measures[name];
      const title = `layer ${l + 1}: mean ${number(mean)}`;
      return [{ x: l + 1, y: mean, low: mean - (std ?? 0), high: mean + (std ?? 0), title }];
    };
    const curve = ({ label, layers }, m) => ({ name: label, style: styleOf(m), points: layers.flatMap(point) });
    lineChart(panels[i].querySelector(".chart"), {
      name: `${MEASURES[name]}, by layer`,
      series: models.map(curve).filter(({ points }) => points.length),
      xs: Array.from({ length: Math.max(...models.map(({ layers }) => layers.length)) }, (_, l) => l + 1),
      xTitle: "layer",
      yFormat: name === "sparsity" ? percent : short,
    });
  }
}

// Loss and bits per byte of a model, on the windows that the page measured.
export function lossSentence({ label, loss, labels, is_bytes }) {
  const bits = is_bytes ? `, ${short(loss / Math.LN2)} bits per byte` : "";
  return `${label}: ${short(loss)} nats per token${bits}, on ${labels.toLocaleString("en")} tokens.`;
}

function renderHead() {
  const items = models.map((model, i) => {
    const size = `${countOf(model.layers.length, "layer")}, ${model.parameters.toLocaleString("en")} parameters`;
    const about = `${model.name}, ${size}${model.untrained ? ", untrained" : ""}`;
    return h("li", {}, nameOf(model, i), " ", h("small", {}, about));
  });
  document.getElementById("models").replaceChildren(...items);
  const model = models[state.model];
  const sentences = [...models.map(lossSentence), objectiveSentence(model), rateSentence(model)];
  if (untrained && !model.untrained) sentences.splice(-1, 0, againstUntrained(model, untrained, "objective"));
  document.getElementById("verdict").textContent = sentences.filter(Boolean).join(" ");
}

function renderRun() {
  const { run } = report;
  const rows = [
    ["command", run.command],
    ["date", run.date],
    ["data", run.data.join(", ")],
    ["measured", `${run.measured} of ${run.of} windows`],
  ];
  rows.push(...Object.entries(run.versions), ["device", run.device]);
  for (const model of models)
    if (model.running?.checked) rows.push([`${model.label} in this page`, checkedSentence(model.running)]);
  const cells = rows.map(([name, text]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, text)));
  document.querySelector("#run > .body").replaceChildren(div("scroll", h("table", {}, h("tbody", {}, cells))));
}

function checkedSentence({ dtype, checked: { same, of, most } }) {
  return `weights as ${dtype}: the most likely token is the same for ${same} of ${of}, and no probability differs by more than ${short(most)}`;
}

const NEAR = 5; // tokens before a token that say little about where it looks

// Open where a token looks most clearly at one that is not near; both are no space. Large models try the first text only.
async function openAtPeak() {
  const model = models[state.model];
  let [most, place] = [0, { window: 0, layer: model.layers.length - 1 }];
  for (const window of report.windows.slice(0, model.parameters < 1e6 ? 4 : 1).keys()) {
    chooseWindow(window);
    look = await lookAt();
    const says = state.ids.map((id) => textOf(id).trim() !== "");
    for (const layer of model.layers.keys()) {
      state.layer = layer;
      for (let head = 0; head < headCount(model); head++)
        for (let at = NEAR; at < says.length; at++) {
          const row = says[at] ? look.attention(layer, head, at) : null;
          const best = row ? row.indexOf(Math.max(...row)) : at;
          if (at - best < NEAR || !says[best] || row[best] <= most) continue;
          [most, place] = [row[best], { window, layer, head, at }];
        }
    }
  }
  Object.assign(state, place);
  chooseWindow(place.window);
}

state.model = Math.max(
  models.findIndex(({ running }) => running),
  0,
);
await openAtPeak();
renderHead();
renderObjective();
renderRun();
await refresh();
document.body.setAttribute("aria-busy", "false");
// For tests.
window.crateReport = { lookSentence, effectSentence, forwardText, loadNet, lossSentence, report };

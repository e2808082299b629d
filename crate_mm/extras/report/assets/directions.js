// The directions of the dictionary: how many tokens use each, which images, which classes, and what reads it next.

import { changes, toggled } from "./changes.js";
import { GROUND } from "./colour.js";
import { className, part, report, unpack } from "./data.js";
import { lacking } from "./charts.js";
import { barline, bars, button, buttons, div, h, note, nothing, says, select } from "./dom.js";
import { percent, short } from "./numbers.js";
import { picture } from "./heat.js";
import { directionSentence } from "./sentences.js";
import { address, choose, state } from "./state.js";
import { responsive, s } from "./svg.js";
import { netOf } from "./views.js";

const LISTED = 12;
let order = "most"; // "most", "least" used, or the number of a class

export async function renderDirections(body) {
  const model = report.models[state.a];
  const code = model.layers[state.layer]?.code;
  if (!code) {
    body.replaceChildren(lacking(model, "code", "This layer has no code."));
    return;
  }
  const shares = await unpack(code.share);
  const byClass = code.by_class && (await unpack(code.by_class));
  // The uses of direction j by class: its share of the class's tokens, and their number.
  const tokens = model.grid ? model.grid[0] + model.grid[1] * model.grid[2] : 1;
  const classesOf = (j) =>
    (byClass ? model.classes : []).map((label, i) => {
      const share = part(byClass, code.by_class.shape, i)[j];
      return { name: className(label), share, uses: Math.round(share * code.class_counts[i] * tokens) };
    });
  if (Number(order) >= (byClass ? model.classes.length : 0)) order = "most";
  const lift = (j, c) => classesOf(j)[c].share / (shares[j] || 1);
  const rank = (j) => (order === "most" ? shares[j] : order === "least" ? -shares[j] : lift(j, order));
  const ranks = new Map(code.directions.map((direction) => [direction.number, rank(direction.number)]));
  const used = [...ranks.keys()].filter((j) => order !== "least" || shares[j] > 0);
  const numbers = used.sort((a, b) => ranks.get(b) - ranks.get(a));
  // At first that which one class uses most often beside the others.
  const best = (j) => Math.max(...classesOf(j).map(({ share, uses }) => (uses >= 30 ? share / (shares[j] || 1) : 0)));
  const start = () => numbers.map((j) => [byClass ? best(j) : 0, j]).reduce((a, b) => (b[0] > a[0] ? b : a), [0])[1];
  const given = state.direction !== null && state.direction < shares.length;
  const chosen = given ? state.direction : (start() ?? numbers[0]);
  const known = code.directions.find((direction) => direction.number === chosen) ?? { number: chosen };
  const unused = [...shares].filter((share) => share === 0).length;
  const few = numbers.length < shares.length ? ` Images are kept for ${code.directions.length} of them.` : "";
  const each = unused ? `${unused} of them are used by no measured image` : "each is used by some measured image";
  const plot = div("density");
  body.replaceChildren(
    note(
      `Layer ${state.layer + 1} has ${shares.length} directions. Each dot is one, at the share of tokens that use it; ${each}.${few}`,
      "never",
    ),
    plot,
    div(
      "directions",
      directionList(model, byClass, numbers, shares, chosen),
      chosen === undefined
        ? nothing("No token of the measured images uses a direction of this layer.")
        : await directionPanel(model, known, shares[chosen], classesOf(chosen), numbers),
    ),
  );
  responsive(plot, (width) => density(Math.min(width, 680), shares, chosen));
}

// A dot a direction by the share of tokens that use it, on a logarithmic axis.
function density(width, shares, chosen) {
  const at = (share) => 20 + ((Math.log10(Math.max(share, 1e-3)) + 3) / 3) * (width - 40);
  const svg = s("svg", { width, height: 70, role: "img", "aria-label": "share of tokens that use each direction" });
  const columns = new Map();
  shares.forEach((share, j) => {
    if (share === 0) return;
    const column = Math.round(at(share) / 5);
    columns.set(column, [...(columns.get(column) ?? []), j]);
  });
  const apart = Math.min(5, 44 / Math.max(...[...columns.values()].map((list) => list.length)));
  for (const [column, list] of columns)
    list.forEach((j, level) => {
      const dot = { cx: column * 5, cy: 46 - apart * level, r: 2.2, class: j === chosen ? "dot-chosen" : "dot-one" };
      svg.append(s("circle", dot, s("title", {}, `${j + 1}: ${percent(shares[j])}`)));
    });
  for (const share of [0.001, 0.01, 0.1, 1])
    svg.append(s("text", { x: at(share), y: 64, "text-anchor": "middle" }, percent(share)));
  return svg;
}

function directionList(model, byClass, numbers, shares, chosen) {
  const classes = byClass ? model.classes.map((label, i) => [i, `used most by class ${className(label)}`]) : [];
  const used = ["most", "least"].map((value) => [value, `${value} used`]);
  const reorder = (value) => ((order = value), choose({ direction: state.direction }));
  const sort = select("order", "order", [...used, ...classes], order, reorder);
  const inside = (j) => Math.min(Math.max(Math.round(j) || 1, 1), shares.length) - 1;
  const of = { type: "number", min: 1, max: shares.length, value: (chosen ?? 0) + 1, "data-key": "jump" };
  const jump = h("input", { ...of, onchange: () => choose({ direction: inside(Number(jump.value)) }) });
  const rows = numbers.slice(0, LISTED).map((j) => {
    const content = [h("span", {}, j + 1), h("span", {}, percent(shares[j])), barline(shares[j])];
    return button(`direction-${j}`, content, () => choose({ direction: j }), j === chosen);
  });
  return h("div", { class: "list", "data-scroll": "list" }, buttons(sort, h("label", {}, "number ", jump)), rows);
}

async function directionPanel(model, direction, share, classes, numbers) {
  const j = direction.number;
  const at = numbers.indexOf(j);
  const step = (by) => () =>
    choose({ direction: numbers[(Math.max(at, by < 0 ? 0 : -1) + by + numbers.length) % numbers.length] });
  const group = (title, uses) => {
    const items = uses.map(([position, patch, value]) => h("li", {}, marked(model, position, patch), short(value)));
    return div(null, h("h4", {}, title), h("ul", { class: "end", "data-told": title.split(" ")[0] }, items));
  };
  const most = Math.max(...classes.map((entry) => entry.share), share) || 1;
  const rows = classes.map((entry) => [entry.name, entry.share / most, percent(entry.share)]);
  const title = h("h4", {}, "Share of tokens by class; the line is that of all tokens");
  return div(
    "panel",
    buttons(
      h("strong", {}, `Direction ${j + 1}`),
      button("previous", "< previous", step(-1)),
      button("next", "next >", step(1)),
      h("a", { href: address({ direction: j, section: "directions" }) }, "link"),
      model.running ? switchOff(j) : "",
    ),
    says("direction", directionSentence({ number: j + 1, share, images: model.images, classes })),
    direction.top
      ? div(
          "halves",
          group("strongest uses, with amounts", direction.top),
          group("middle uses, around the median amount", direction.middle),
        )
      : note("The page keeps no images of this direction."),
    div(
      "halves",
      div(
        null,
        title,
        rows.length ? bars(rows, { line: share / most, told: "class-shares" }) : lacking(model, "labels"),
      ),
      model.running ? div(null, await reads(model, j)) : "",
    ),
  );
}

// Which heads of the next layer read the direction, or which classes it pulls at in the last layer.
async function reads(model, j) {
  const net = await netOf(model);
  const next = net.layers[state.layer + 1];
  const list = (title, rows) => [h("h4", {}, title), bars(rows, { told: "reads" })];
  if (next) {
    // As shares, so that LayerNorm's weight of the direction, the same for all heads, falls out.
    const weights = Array.from({ length: next.heads }, (_, k) => {
      const rows = part(next.subspaces, [next.heads, next.headDim * net.width], k);
      return Math.hypot(...rows.filter((_, i) => i % net.width === j));
    });
    const [total, most] = [weights.reduce((a, b) => a + b, 0) || 1, Math.max(...weights) || 1];
    return list(
      `How strongly the heads of layer ${state.layer + 2} read this direction, as shares`,
      weights.map((w, k) => [`head ${k + 1}`, w / most, percent(w / total)]),
    );
  }
  const gamma = net.eps.head === null ? 1 : net.get("head_norm.weight")[j];
  const pull = Array.from({ length: net.classes }, (_, c) => net.get("fc.weight")[c * net.width + j] * gamma);
  const mean = pull.reduce((a, b) => a + b, 0) / pull.length;
  const most = Math.max(...pull.map((value) => Math.abs(value - mean))) || 1;
  return list(
    "What it adds to each class: blue above the mean, orange below",
    pull.map((value, c) => [className(c), (value - mean) / most, short(value - mean)]),
  );
}

function switchOff(j) {
  const off = changes().directions.get(state.layer)?.has(j) ?? false;
  const flip = () => choose({ off: toggled([["d", state.layer, j]]) });
  const text = off ? "switch it on" : "switch it off";
  return [button("switch-direction", text, flip, off), h("a", { href: "#draw" }, "see the effect")];
}

// A thumbnail with a patch outlined.
function marked(model, position, patch) {
  const image = h("img", { src: report.thumbnails[position], alt: `image ${position} of the data`, loading: "lazy" });
  const box = h("span", { class: "thumb" }, image);
  if (!model.grid) return box;
  const [, rows, columns] = model.grid;
  const canvas = h("canvas", { width: 96, height: 96, "aria-hidden": "true" });
  picture(image.src).then(({ naturalWidth, naturalHeight }) => {
    const scale = 96 / Math.max(naturalWidth, naturalHeight);
    const [width, height] = [naturalWidth * scale, naturalHeight * scale];
    const [w, t] = [width / columns, height / rows];
    const [x, y] = [(96 - width) / 2 + (patch % columns) * w, (96 - height) / 2 + Math.floor(patch / columns) * t];
    const context = canvas.getContext("2d");
    context.lineWidth = 3;
    const outline = (colour, inset) => {
      context.strokeStyle = colour;
      context.strokeRect(x + inset, y + inset, w - 2 * inset, t - 2 * inset);
    };
    outline(`rgb(${GROUND})`, 1);
    outline("#fff", 4);
  });
  box.append(canvas);
  return box;
}

// The directions of the dictionary: how many tokens use each, which images, which classes, and what reads it next.

import { changes, toggled } from "./changes.js";
import { GROUND } from "./colour.js";
import { className, part, report, unpack } from "./data.js";
import { bars, lacking, nothing } from "./dom.js";
import { h } from "./element.js";
import { countOf, number, percent, short } from "./numbers.js";
import { picture } from "./heat.js";
import { thumbnail } from "./objective.js";
import { directionSentence } from "./sentences.js";
import { address, choose, state } from "./state.js";
import { responsive, s } from "./svg.js";
import { netOf } from "./views.js";

export const directionsNeeds = ["layer", "a", "direction", "off"];

const LISTED = 12;
let order = "most"; // "most", "least" used, or a class

export async function renderDirections(body) {
  const model = report.models[state.a];
  const code = model.layers[state.layer]?.code;
  if (!code) {
    const depth = `${model.label} has ${countOf(model.layers.length, "layer")}.`;
    body.replaceChildren(
      model.layers[state.layer] ? lacking(model, "code", "This layer has no code.") : nothing(depth),
    );
    return;
  }
  const shares = await unpack(code.share);
  const byClass = code.by_class ? await unpack(code.by_class) : null;
  const known = new Map(code.directions.map((direction) => [direction.number, direction]));
  if (!byClass && order.startsWith("class ")) order = "most";
  const rank = (j) =>
    order.startsWith("class ")
      ? part(byClass, code.by_class.shape, Number(order.slice(6)))[j] / (shares[j] || 1)
      : order === "least"
        ? -shares[j]
        : shares[j];
  const used = [...known.keys()].filter((j) => order !== "least" || shares[j] > 0);
  const numbers = used.sort((a, b) => rank(b) - rank(a));
  const chosen =
    state.direction !== null && state.direction < shares.length
      ? state.direction
      : (startingDirection(code, byClass, shares, model) ?? numbers[0]);
  const plot = h("div", { class: "density" });
  const unused = [...shares].filter((share) => share === 0).length;
  body.replaceChildren(
    h(
      "p",
      { class: "note", "data-told": "never" },
      `Layer ${state.layer + 1} has ${shares.length} directions; ${unused ? `${unused} of them are used by no measured image` : "each is used by some measured image"}.${known.size < shares.length ? ` Images are kept for ${known.size} of them.` : ""}`,
    ),
    plot,
    h(
      "div",
      { class: "directions" },
      directionList(model, code, numbers, shares, chosen),
      await directionPanel(model, code, known.get(chosen) ?? { number: chosen }, shares, byClass, numbers),
    ),
  );
  density(plot, shares, chosen);
}

// The direction that one class uses most often beside the others, among those with enough uses; null without labels.
function startingDirection(code, byClass, shares, model) {
  if (!byClass) return null;
  let best = [0, null];
  for (const { number: j } of code.directions)
    for (let c = 0; c < code.class_counts.length; c++) {
      const share = part(byClass, code.by_class.shape, c)[j];
      const lift = share / (shares[j] || 1);
      if (share * code.class_counts[c] * tokensOf(model) >= 30 && lift > best[0]) best = [lift, j];
    }
  return best[1];
}

// A dot a direction by the share of tokens that use it, on a logarithmic axis.
function density(box, shares, chosen) {
  responsive(box, (width) => dots(Math.min(width, 680), shares, chosen));
}

function dots(width, shares, chosen) {
  const at = (share) => 20 + ((Math.log10(Math.max(share, 1e-3)) + 3) / 3) * (width - 40);
  const svg = s("svg", { width, height: 70, role: "img", "aria-label": "share of tokens that use each direction" });
  const heights = new Map();
  shares.forEach((share, j) => {
    if (share === 0) return;
    const column = Math.round(at(share) / 5);
    const level = heights.get(column) ?? 0;
    heights.set(column, level + 1);
    const y = 46 - 5 * (level % 9);
    svg.append(
      s(
        "circle",
        { cx: column * 5, cy: y, r: 2.2, class: j === chosen ? "dot-chosen" : "dot-one" },
        s("title", {}, `${j + 1}: ${percent(share)}`),
      ),
    );
  });
  for (const share of [0.001, 0.01, 0.1, 1])
    svg.append(s("text", { x: at(share), y: 64, "text-anchor": "middle" }, percent(share)));
  return svg;
}

function directionList(model, code, numbers, shares, chosen) {
  const classes = code.by_class
    ? model.classes.map((label, i) => h("option", { value: `class ${i}` }, `used most by class ${className(label)}`))
    : [];
  const sort = h(
    "select",
    {
      "data-key": "order",
      "aria-label": "order",
      onchange: () => {
        order = sort.value;
        choose({ direction: state.direction });
      },
    },
    h("option", { value: "most" }, "most used"),
    h("option", { value: "least" }, "least used"),
    classes,
  );
  sort.value = order;
  const jump = h("input", {
    type: "number",
    min: 1,
    max: shares.length,
    value: chosen + 1,
    "data-key": "jump",
    "aria-label": "number of a direction",
    onchange: () =>
      choose({ direction: Math.min(Math.max(Math.round(Number(jump.value)) || 1, 1), shares.length) - 1 }),
  });
  const rows = numbers.slice(0, LISTED).map((j) => {
    const bar = h("span", { class: "barline" }, h("i", { style: { width: `${100 * shares[j]}%` } }));
    return h(
      "button",
      {
        type: "button",
        "data-key": `direction-${j}`,
        "aria-pressed": j === chosen,
        onclick: () => choose({ direction: j }),
      },
      h("span", {}, j + 1),
      h("span", {}, percent(shares[j])),
      bar,
    );
  });
  return h(
    "div",
    { class: "list", "data-scroll": "list" },
    h("p", { class: "buttons" }, sort, h("label", {}, "number ", jump)),
    rows,
  );
}

async function directionPanel(model, code, direction, shares, byClass, numbers) {
  const j = direction.number;
  if (j === undefined) return nothing("No token of the measured images uses a direction of this layer.");
  const classes = byClass
    ? model.classes.map((label, i) => {
        const share = part(byClass, code.by_class.shape, i)[j];
        return { name: className(label), share, uses: Math.round(share * code.class_counts[i] * tokensOf(model)) };
      })
    : [];
  const sentence = directionSentence({ number: j + 1, share: shares[j], images: model.images, classes });
  const at = numbers.indexOf(j);
  const step = (by) => () =>
    choose({ direction: numbers[(Math.max(at, by < 0 ? 0 : -1) + by + numbers.length) % numbers.length] });
  const group = (title, uses) =>
    h(
      "div",
      {},
      h("h4", {}, title),
      h(
        "ul",
        { class: "end", "data-told": title.split(" ")[0] },
        uses.map(([position, patch, value]) => h("li", {}, marked(model, position, patch), number(value))),
      ),
    );
  const box = h(
    "div",
    { class: "panel" },
    h(
      "p",
      { class: "buttons" },
      h("strong", {}, `Direction ${j + 1}`),
      h("button", { type: "button", "data-key": "previous", onclick: step(-1) }, "< previous"),
      h("button", { type: "button", "data-key": "next", onclick: step(1) }, "next >"),
      h("a", { href: address({ direction: j }) }, "link"),
      ...(model.running ? switchOff(j) : []),
    ),
    h("p", { class: "says", "data-told": "direction" }, sentence),
    direction.top
      ? h("div", { class: "halves" }, [
          group("strongest uses", direction.top),
          group("middle uses, around the median", direction.middle),
        ])
      : h("p", { class: "note" }, "The page keeps no images of this direction."),
  );
  const columns = h("div", { class: "halves" });
  if (classes.length) {
    const most = Math.max(...classes.map(({ share }) => share), shares[j]) || 1;
    const rows = classes.map(({ name, share }) => [name, share / most, percent(share)]);
    const chart = bars(rows, { line: shares[j] / most, told: "class-shares" });
    columns.append(h("div", {}, h("h4", {}, "Share of tokens by class (line: all)"), chart));
  } else columns.append(lacking(model, "labels"));
  if (model.running) columns.append(h("div", {}, await reads(model, j)));
  box.append(columns);
  return box;
}

function tokensOf(model) {
  return model.grid ? model.grid[0] + model.grid[1] * model.grid[2] : 1;
}

// Which heads of the next layer read the direction, or which classes it pulls at in the last layer.
async function reads(model, j) {
  const net = await netOf(model);
  const next = net.layers[state.layer + 1];
  if (next) {
    const [gamma] = next.normCompress;
    const weights = Array.from({ length: next.heads }, (_, k) => {
      let sum = 0;
      for (let c = k * next.headDim; c < (k + 1) * next.headDim; c++) sum += next.subspaces[c * net.width + j] ** 2;
      return Math.abs(gamma[j]) * Math.sqrt(sum);
    });
    const total = weights.reduce((a, b) => a + b, 0) || 1;
    return [
      h("h4", {}, `Read by the heads of layer ${state.layer + 2}, as shares`),
      bars(
        weights.map((w, k) => [`head ${k + 1}`, w / Math.max(...weights, 1e-12), percent(w / total)]),
        { told: "reads" },
      ),
    ];
  }
  const gamma = net.eps.head === null ? 1 : net.get("head_norm.weight")[j];
  const pull = Array.from({ length: net.classes }, (_, c) => net.get("fc.weight")[c * net.width + j] * gamma);
  const mean = pull.reduce((a, b) => a + b, 0) / pull.length;
  const most = Math.max(...pull.map((value) => Math.abs(value - mean))) || 1;
  return [
    h("h4", {}, "Pull on each class, before LayerNorm's scaling"),
    bars(
      pull.map((value, c) => [className(c), (value - mean) / most, short(value - mean)]),
      { told: "reads" },
    ),
  ];
}

function switchOff(j) {
  const off = changes().directions.get(state.layer)?.has(j) ?? false;
  const flip = () => choose({ off: toggled([["d", state.layer, j]]) });
  return [
    h(
      "button",
      { type: "button", "data-key": "switch-direction", "aria-pressed": off, onclick: flip },
      off ? "switch it on" : "switch it off",
    ),
    h("a", { href: "#draw" }, "what that does"),
  ];
}

// A thumbnail with a patch outlined.
function marked(model, position, patch) {
  const box = thumbnail(position);
  box.classList.add("large");
  if (!model.grid) return box;
  const [, rows, columns] = model.grid;
  const canvas = h("canvas", { width: 96, height: 96, "aria-hidden": "true" });
  picture(report.thumbnails[position]).then((image) => {
    const scale = 96 / Math.max(image.naturalWidth, image.naturalHeight);
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const [w, t] = [width / columns, height / rows];
    const [x, y] = [(96 - width) / 2 + (patch % columns) * w, (96 - height) / 2 + Math.floor(patch / columns) * t];
    const context = canvas.getContext("2d");
    for (const [colour, inset] of [
      [`rgb(${GROUND})`, 1],
      ["#fff", 4],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = 3;
      context.strokeRect(x + inset, y + inset, w - 2 * inset, t - 2 * inset);
    }
  });
  box.append(canvas);
  return box;
}

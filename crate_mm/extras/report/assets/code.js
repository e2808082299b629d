// The sparse code: of the chosen image, over the data, and its overlap between classes.

import { legend, matrix, styleOf } from "./charts.js";
import { className, report, unpack } from "./data.js";
import { h, heading, mark, nothing, number, percent } from "./dom.js";
import { heat, picture, shares } from "./heat.js";
import { thumbnail } from "./objective.js";
import { choose, shownModels, state } from "./state.js";
import { lineChart } from "./svg.js";
import { codeOf } from "./views.js";

export const codeNeeds = ["image", "layer", "a", "b", "direction"];

export async function renderCode(body) {
  const usage = h("div", { class: "chart" });
  const panels = [];
  for (const { model, index } of shownModels()) {
    const box = h("article", { class: "model", "data-model": index, style: { "--mark": mark(index) } });
    box.append(heading(model, index));
    const code = model.layers[state.layer]?.code;
    if (code) box.append(...(await codeViews(model, index, code)));
    else
      box.append(
        nothing(
          model.layers[state.layer]
            ? (model.undefined.code ?? "This layer has no code.")
            : `This model has ${model.layers.length} layers.`,
        ),
      );
    panels.push(box);
  }
  const series = await usageSeries();
  const head = series.length ? [h("h4", {}, `Use of the atoms of layer ${state.layer + 1}`), legend(), usage] : [];
  body.replaceChildren(...head, ...panels);
  if (!series.length) return;
  const most = Math.max(...series.map(({ points }) => points.at(-1).x));
  lineChart(usage, {
    name: "Fraction of tokens that use each atom, most used first",
    series,
    xs: Array.from({ length: 7 }, (_, i) => Math.round(1 + (i * (most - 1)) / 6)),
    xTitle: "atom, most used first",
    yFormat: percent,
  });
}

async function usageSeries() {
  const series = [];
  for (const { model, index } of shownModels()) {
    const code = model.layers[state.layer]?.code;
    if (!code) continue;
    const values = await unpack(code.sorted_share);
    const step = Math.max(Math.floor(values.length / 200), 1); // as many points as a screen has room for
    const points = [...values.keys()].filter((i) => i % step === 0).map((i) => ({ x: i + 1, y: values[i] }));
    series.push({ name: model.label, style: styleOf(index), points });
  }
  return series;
}

async function codeViews(model, index, code) {
  const { values, tokens, channels, of } = await codeOf(model);
  const first = model.grid?.[0] ?? 0;
  const who = (i) => (tokens[i] < first ? "class token" : `patch ${tokens[i] - first + 1}`);
  const columns = channels.length;
  const zero = values.filter((value) => value === 0).length / values.length;
  const some = columns < of ? `${columns} of ${of} atoms, evenly spaced` : `all ${of} atoms`;
  const figure = heat({
    key: `code-${index}`,
    name: `${model.label}: entries of the code, one row per token, one column per atom`,
    rows: tokens.length,
    columns,
    values: shares(values),
    stretch: 0.32,
    tell: (i) => `${who(Math.floor(i / columns))}, atom ${channels[i % columns] + 1}: ${number(values[i])}`,
    caption: "The code of this image",
  });
  const note = `One row per token, one column per atom (${some}); ${percent(zero)} of these entries are zero.`;
  const told = h("p", { class: "note", "data-told": "zero" }, note);
  const views = [h("div", {}, h("div", { class: "scroll" }, figure), told), directionView(model, index, code)];
  if (code.overlap) {
    const names = model.classes.map((label) => className(label));
    const shared = await unpack(code.overlap);
    const sentence = `1 if two classes use each atom equally often, 0 if they share no atom; minimum ${number(Math.min(...shared))}`;
    const some =
      model.classes.length < report.limits.classes
        ? ""
        : ` Only the first ${report.limits.classes} classes of the data are shown.`;
    const key = `overlap-${index}`;
    const caption = "Overlap of the codes of classes";
    const figure = matrix({
      key,
      name: `${model.label}: ${caption}`,
      caption,
      rows: names,
      columns: names,
      values: shared,
      most: 1,
    });
    views.push(h("div", { class: "panel" }, figure, h("p", {}, `${sentence}.${some}`)));
  }
  if (!code.overlap) views.push(nothing(model.undefined.labels ?? ""));
  return [views[0], h("div", { class: "row two after" }, ...views.slice(1))];
}

function directionView(model, index, code) {
  const chosen = code.directions[Math.min(state.direction, code.directions.length - 1)];
  const options = code.directions.map((direction, i) => {
    const kind = direction.kind === "most" ? "most used" : "least used";
    return h(
      "option",
      { value: i, selected: direction === chosen },
      `${direction.number + 1} (${kind}, ${percent(direction.share)} of tokens)`,
    );
  });
  const select = h(
    "select",
    { "data-key": `direction-${index}`, onchange: (event) => choose({ direction: Number(event.target.value) }) },
    options,
  );
  const { never: unused, directions_in_all: all } = code;
  const listed = unused.slice(0, 24).map((n) => n + 1);
  if (unused.length > 24) listed.push("…");
  const never = unused.length
    ? `No token of any measured image uses ${unused.length} of the ${all} atoms: ${listed.join(", ")}.`
    : `Each of the ${all} atoms is used by some token.`;
  if (!chosen) return h("div", { class: "panel" }, h("h4", {}, "Images of an atom"), h("p", {}, never));
  const list = chosen.top.map(([position, patch, value]) => h("li", {}, marked(model, position, patch), number(value)));
  return h(
    "div",
    { class: "panel" },
    h("h4", {}, "Images of an atom"),
    h("label", {}, "Atom ", select),
    h("ul", { class: "end", "data-told": "direction" }, list),
    h("p", {}, "The images with its largest entries. The frame marks the patch with the largest entry."),
    h("p", { "data-told": "never" }, never),
  );
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
    const context = canvas.getContext("2d");
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    context.lineWidth = 4;
    context.strokeRect(
      (96 - width) / 2 + (patch % columns) * w + 2,
      (96 - height) / 2 + Math.floor(patch / columns) * t + 2,
      w - 4,
      t - 4,
    );
  });
  box.append(canvas);
  return box;
}

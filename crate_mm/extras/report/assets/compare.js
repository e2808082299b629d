// What differs between A and B, layer by layer: a strip of maps for each, and their difference.

import { grayOfPicture, over, paint, ring, scaleEnd, signed, strength } from "./colour.js";
import { report } from "./data.js";
import { dot, nothing } from "./dom.js";
import { h } from "./element.js";
import { number } from "./numbers.js";
import { picture } from "./heat.js";
import { timesUniform } from "./image.js";
import { playButton } from "./play.js";
import { mapsSentence } from "./sentences.js";
import { choose, shownModels, state } from "./state.js";
import { attentionRows, scaleOf } from "./views.js";

export const compareNeeds = ["image", "layer", "head", "y", "x", "cls", "a", "b"];

export async function renderCompare(body) {
  document.getElementById("compare").hidden = report.models.length < 2;
  const shown = shownModels();
  if (shown.length < 2) {
    body.replaceChildren(nothing("Choose another model as B."));
    return;
  }
  const [one, other] = shown.map(({ model }) => model);
  const trained = one.untrained !== other.untrained && one.name === other.name;
  document.getElementById("compare-title").textContent = trained ? "What training changed" : "What differs";
  const depth = Math.max(...shown.map(({ model }) => model.layers.length));
  const films = [];
  for (const { model, index } of shown) films.push(await film(model, index, depth));
  const rows = films.map(({ row }) => row);
  const [a, b] = films;
  const both = a.times.map((values, l) =>
    values && b.times[l] && sameGrid(a.maps[l], b.maps[l]) ? values.map((x, i) => x - b.times[l][i]) : null,
  );
  const layers = [...both.keys()].filter((l) => both[l]);
  const differences = layers.map((l) => both[l].reduce((sum, x) => sum + Math.abs(x), 0) / both[l].length);
  if (differences.length) {
    const all = layers.flatMap((l) => [...both[l]].map(Math.abs));
    const most = scaleEnd(all, 1e9);
    rows.push(
      filmRow("A − B", "difference", depth, (l) => {
        if (!both[l]) return null;
        const canvas = h("canvas", { "aria-hidden": "true" });
        return paint(canvas, { ...a.maps[l], long: 72, colour: (i) => signed(both[l][1 + i], most) });
      }),
    );
  }
  const [first, second] = shown.map(({ model }) => model.label);
  body.replaceChildren(
    h(
      "p",
      { class: "says", "data-told": "maps" },
      differences.length
        ? `${mapsSentence(
            first,
            second,
            differences,
            layers.map((l) => l + 1),
          )} This is of the chosen token and head.`
        : "They have no attention maps of one size to compare.",
    ),
    h(
      "p",
      { class: "buttons" },
      playButton("film-play", "play over the layers >", {
        begin: () => choose({ layer: 0 }),
        next: () => nextLayer(depth),
        milliseconds: 1000,
      }),
    ),
    h(
      "div",
      { class: "scroll", "data-scroll": "film" },
      h(
        "table",
        { class: "film" },
        h("caption", { class: "hidden" }, "Attention maps by layer"),
        h("tbody", {}, rows, rateRows(shown, depth)),
      ),
    ),
  );
}

function nextLayer(depth) {
  if (state.layer >= depth - 1) return false;
  choose({ layer: state.layer + 1 });
  return true;
}

// A row of the table: one cell a layer, which chooses the layer.
function filmRow(name, key, depth, cell) {
  const cells = Array.from({ length: depth }, (_, l) => {
    const button = h(
      "button",
      {
        type: "button",
        "data-key": `film-${key}-${l}`,
        "aria-pressed": l === state.layer,
        "aria-label": `${key === "difference" ? name : report.models[key].label}, layer ${l + 1}`,
        onclick: () => choose({ layer: l }),
      },
      cell(l) ?? "–",
    );
    return h("td", {}, button);
  });
  return h("tr", {}, h("th", { scope: "row" }, name), cells);
}

async function film(model, index, depth) {
  const [times, maps] = [[], []];
  const [most, below] = [await scaleOf(), grayOfPicture(await picture(report.datas[model.data].pictures[state.image]))];
  for (let l = 0; l < depth; l++) {
    const found = await attentionRows(model, l);
    maps.push(found?.heads[state.head] ? found : null);
    times.push(maps[l] ? timesUniform(found.heads[state.head], found, model.grid) : null);
  }
  const row = filmRow([dot(index), model.label], index, depth, (l) => {
    if (!maps[l]) return null;
    const canvas = h("canvas", { "aria-hidden": "true" });
    paint(canvas, { ...maps[l], below, long: 72, colour: (i, v) => over(strength(times[l][1 + i], most), v) });
    if (maps[l].chosen) ring(canvas, maps[l].chosen - 1, maps[l]);
    return canvas;
  });
  return { row, times, maps };
}

function sameGrid(a, b) {
  return a.rows === b.rows && a.columns === b.columns && a.side === b.side;
}

function rateRows(shown, depth) {
  return shown.map(({ model, index }) => {
    const cells = Array.from({ length: depth }, (_, l) => h("td", {}, number(model.layers[l]?.measures.rc_half?.mean)));
    return h("tr", {}, h("th", { scope: "row" }, dot(index), `Rᶜ, ${model.label}`), cells);
  });
}

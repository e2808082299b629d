// What differs between A and B, layer by layer: a strip of maps for each, and their difference.

import { scaleEnd } from "./colour.js";
import { report } from "./data.js";
import { dot } from "./charts.js";
import { button, buttons, h, nothing, says } from "./dom.js";
import { attentionMap, differenceMap, grayBelow } from "./heat.js";
import { sameGrid } from "./image.js";
import { playButton } from "./play.js";
import { mapsSentence } from "./sentences.js";
import { choose, depthOf, mostOf, shownModels, state } from "./state.js";
import { attentionRows } from "./views.js";

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
  const layers = [...Array(mostOf(depthOf)).keys()];
  const [a, b] = [await mapsByLayer(one, layers), await mapsByLayer(other, layers)];
  // A row of maps: one cell a layer, which chooses the layer.
  const film = (key, name, label, draw) => {
    const cells = layers.map((l) => {
      const told = { "aria-label": `${label}, layer ${l + 1}` };
      return button(`film-${key}-${l}`, draw(l) ?? "–", () => choose({ layer: l }), l === state.layer, told);
    });
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      cells.map((cell) => h("td", {}, cell)),
    );
  };
  const rows = [];
  for (const { model, index } of shown) {
    const below = await grayBelow(model);
    const maps = model === one ? a : b;
    const draw = (l) => maps[l] && attentionMap(maps[l], state.head, below, 72);
    rows.push(film(index, [dot(index), model.label], model.label, draw));
  }
  const both = layers.map((l) => a[l] && b[l] && sameGrid(a[l], b[l]) && differenceOf(a[l], b[l]));
  const common = layers.filter((l) => both[l]);
  let sentence = "They have no attention maps of one size to compare.";
  if (common.length) {
    const most = scaleEnd(
      common.flatMap((l) => [...both[l]].map(Math.abs)),
      1e9,
    );
    const draw = (l) => both[l] && differenceMap(a[l], both[l], most, 72);
    rows.push(film("difference", "A − B", "A − B", draw));
    const means = common.map((l) => both[l].reduce((sum, x) => sum + Math.abs(x), 0) / both[l].length);
    const numbers = common.map((l) => l + 1);
    sentence = mapsSentence(one.label, other.label, means, numbers);
  }
  const next = () => state.layer < layers.length - 1 && (choose({ layer: state.layer + 1 }), true);
  const play = { begin: () => choose({ layer: 0 }), next, milliseconds: 1000 };
  const caption = h("caption", { class: "hidden" }, "Attention maps by layer");
  body.replaceChildren(
    says("maps", sentence),
    buttons(playButton("film-play", "play over the layers >", play)),
    h("div", { class: "scroll", "data-scroll": "film" }, h("table", { class: "film" }, caption, h("tbody", {}, rows))),
  );
}

// The attention of the chosen head by layer, null where a layer has none.
async function mapsByLayer(model, layers) {
  const maps = [];
  for (const l of layers) maps.push(await attentionRows(model, l));
  return maps.map((rows) => (rows?.heads[state.head] ? rows : null));
}

function differenceOf(a, b) {
  return a.times[state.head].map((x, i) => x - b.times[state.head][i]);
}

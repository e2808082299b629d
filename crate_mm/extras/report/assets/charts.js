// Charts with Vega-Lite. In its data, models, rows and columns are numbers, because Vega uses names and axis titles as
// object keys, and objects already have keys such as "constructor". Colors are the page's CSS variables, so light, dark
// and print styles apply without a redraw.
// Expressions are interpreted (`ast`), not compiled: the page's policy forbids evaluating strings as code.

import { report } from "./data.js";
import { h, mark } from "./dom.js";
import { shownModels } from "./state.js";

const QUIET = {
  background: "transparent",
  font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
  padding: 2,
  view: { stroke: null },
  axis: {
    labelColor: "var(--soft)",
    titleColor: "var(--soft)",
    titleFontWeight: "normal",
    labelFontSize: 11,
    titleFontSize: 11,
    gridColor: "var(--grid)",
    domainColor: "var(--line)",
    tickColor: "var(--line)",
    tickSize: 4,
    labelPadding: 4,
    labelLimit: 90,
  },
};

export async function chart(container, spec, description) {
  const whole = {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json", // a name; nothing is fetched
    width: "container",
    autosize: { type: "fit-x", contains: "padding" },
    config: QUIET,
    description,
    ...spec,
  };
  const options = {
    actions: false,
    ast: true,
    defaultStyle: false,
    renderer: "svg",
    tooltip: { disableDefaultStyle: true },
    logLevel: 1,
  };
  const { view } = await window.vegaEmbed(container, whole, options);
  return view;
}

// The color of a model, by its index.
export function modelColour() {
  const models = shownModels();
  return {
    field: "model",
    type: "nominal",
    legend: null,
    scale: { domain: models.map(({ index }) => index), range: models.map(({ index }) => mark(index)) },
  };
}

// Ticks at every layer, or every second, third, ... of many: Vega's own ticks also fall between layers.
function layerTicks(most) {
  const step = Math.ceil(most / 12);
  return Array.from({ length: Math.ceil(most / step) }, (_, n) => 1 + n * step);
}

function layerField(most) {
  return {
    field: "layer",
    type: "quantitative",
    title: "layer",
    axis: { values: layerTicks(most), format: "d", grid: false },
    scale: { domain: [1, Math.max(most, 2)], nice: false, padding: 8 },
  };
}

// Rows {model, name, layer, mean, std, low, high} as curves with bands; a rule at the chosen layer.
export function curves(rows, { most, layer, height = 170, format = ".4~g", dashed = false }) {
  const x = layerField(most);
  const y = { type: "quantitative", title: null, scale: { zero: false }, axis: { tickCount: 4, format } };
  const colour = modelColour();
  const tip = [
    { field: "name", title: "model" },
    { field: "layer", title: "layer" },
    { field: "mean", title: "mean", format: ".4~g" },
    { field: "std", title: "deviation", format: ".3~g" },
  ];
  return {
    height,
    data: { name: "rows", values: rows },
    params: [{ name: "layer", value: layer }],
    layer: [
      {
        mark: { type: "area", opacity: 0.14, clip: true },
        encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color: colour },
      },
      {
        mark: { type: "rule", color: "var(--soft)", strokeDash: [2, 3] },
        transform: [{ filter: "datum.layer == layer" }, { aggregate: [], groupby: ["layer"] }],
        encoding: { x },
      },
      ...(dashed
        ? [
            {
              mark: { type: "line", strokeDash: [4, 4], strokeWidth: 1.2 },
              encoding: { x, y: { ...y, field: "random" }, color: colour },
            },
          ]
        : []),
      { mark: { type: "line", strokeWidth: 2 }, encoding: { x, y: { ...y, field: "mean" }, color: colour } },
      {
        mark: { type: "point", filled: true, size: 34, opacity: 1 },
        encoding: { x, y: { ...y, field: "mean" }, color: colour, tooltip: tip },
      },
      {
        mark: { type: "rule", opacity: 0, strokeWidth: 22, cursor: "pointer" },
        transform: [{ aggregate: [], groupby: ["layer"] }],
        encoding: { x },
      },
    ],
  };
}

// Histograms of models in bins of one common width, the widest: all widths are powers of two, or 0 for one value.
export function inBins(found) {
  const widest = Math.max(...found.map(({ histogram }) => histogram.width));
  const width = widest || Math.max(Math.abs(found[0].histogram.start) * 1e-3, 1e-6);
  return found.flatMap(({ model, name, histogram, count }) => {
    const bins = new Map();
    histogram.counts.forEach((n, i) => {
      const bin = Math.floor((histogram.start + (i + 0.5) * histogram.width) / width);
      bins.set(bin, (bins.get(bin) ?? 0) + n);
    });
    return [...bins].map(([bin, n]) => ({
      model,
      name,
      from: bin * width,
      to: (bin + 1) * width,
      share: n / count,
      count: n,
    }));
  });
}

// Rows of `inBins`, overlaid.
export function histograms(rows) {
  return {
    height: 160,
    data: { values: rows },
    mark: { type: "bar", opacity: 0.55, binSpacing: 0 },
    encoding: {
      x: {
        field: "from",
        type: "quantitative",
        title: "value of an image",
        scale: { zero: false },
        axis: { grid: false, tickCount: 6, format: ".4~g" },
      },
      x2: { field: "to" },
      y: {
        field: "share",
        type: "quantitative",
        title: "fraction of images",
        stack: null,
        axis: { tickCount: 4, format: ".0~%" },
      },
      y2: { datum: 0 },
      color: modelColour(),
      tooltip: [
        { field: "name", title: "model" },
        { field: "from", format: ".4~g" },
        { field: "to", format: ".4~g" },
        { field: "count", title: "images" },
      ],
    },
  };
}

// Rows {model, rank, share}: use of each atom, most used first.
export function ranks(rows) {
  return {
    height: 170,
    data: { values: rows },
    mark: { type: "line", strokeWidth: 2, clip: true },
    encoding: {
      x: {
        field: "rank",
        type: "quantitative",
        title: "atom, most used first",
        axis: { grid: false, tickCount: 5, format: "d" },
        scale: { nice: false },
      },
      y: {
        field: "share",
        type: "quantitative",
        title: "fraction of tokens that use it",
        axis: { tickCount: 4, format: ".0~%" },
      },
      color: modelColour(),
    },
  };
}

// Cells {row, column, value} of a matrix, indices from 0, with the names of its rows and columns; opacity is lowest at
// the minimum and full at the maximum.
export function matrix(cells, { rows, columns, rowTitle = null, columnTitle = null, format = ".3~f", height }) {
  const ends = [Math.min(...cells.map((c) => c.value)), Math.max(...cells.map((c) => c.value))];
  const axis = (names) => ({ domain: false, ticks: false, labelExpr: `${names}[datum.value]` });
  const labelAngle = columns.some((name) => name.length > 3) ? -45 : 0;
  return {
    height: height ?? Math.min(Math.max(rows.length * 18, 60), 360),
    data: {
      values: cells.map((cell) => ({ ...cell, rowName: rows[cell.row], columnName: columns[cell.column] })),
    },
    params: [
      { name: "rows", value: rows },
      { name: "columns", value: columns },
    ],
    mark: { type: "rect", cornerRadius: 1 },
    encoding: {
      x: { field: "column", type: "ordinal", title: columnTitle, axis: { ...axis("columns"), labelAngle } },
      y: { field: "row", type: "ordinal", title: rowTitle, axis: axis("rows") },
      color: { value: "var(--accent)" },
      opacity: { field: "value", type: "quantitative", legend: null, scale: { domain: ends, range: [0.06, 1] } },
      tooltip: [
        { field: "rowName", title: rowTitle ?? "row" },
        { field: "columnName", title: columnTitle ?? "column" },
        { field: "value", format },
      ],
    },
  };
}

// Legend of the models' colors, for charts with several models.
export function legend() {
  const models = shownModels();
  if (models.length < 2)
    return h(
      "p",
      { class: "hidden" },
      models.map(({ model }) => model.label),
    );
  return h(
    "p",
    { class: "legend" },
    models.map(({ model, index }) =>
      h("span", {}, h("span", { class: "dot", style: { color: mark(index) } }), model.label),
    ),
  );
}

export function modelLayers() {
  return Math.max(...shownModels().map(({ model }) => model.layers.length), 1);
}

export const measureNames = Object.keys(report.measures).filter((name) =>
  report.models.some((m) => m.layers.some((l) => name in l.measures)),
);

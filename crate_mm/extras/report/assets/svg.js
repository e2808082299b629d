// Charts as plain SVG, redrawn when their width changes. Text is never scaled.

const NS = "http://www.w3.org/2000/svg";

export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

// Ticks of an axis: at most `most`, 1, 2 or 5 x 10^i apart.
function ticks(low, high, most) {
  const rough = (high - low) / most;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => (high - low) / size <= most);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(12)),
  );
}

// The range of an axis: from 0 or a bound to a bound, or at least as long as 10 % of its largest value, so that noise
// does not fill a chart.
function range(values, bounds = []) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const least = 0.1 * Math.max(Math.abs(low), Math.abs(high), 1e-12);
  const middle = (low + high) / 2;
  const half = Math.max((high - low) * 0.55, least / 2);
  const near = bounds.filter((bound) => bound >= middle - 3 * half && bound <= middle + 3 * half);
  return [Math.min(middle - half, ...near), Math.max(middle + half, ...near)];
}

// Draw `chart(width)` into a box now and when the box gets another width.
export function responsive(box, chart) {
  let width = 0;
  const redraw = () => {
    const now = Math.floor(box.clientWidth);
    if (now && now !== width) box.replaceChildren(chart((width = now)));
  };
  redraw();
  new ResizeObserver(redraw).observe(box);
}

const MARGIN = { left: 46, right: 12, top: 10, bottom: 34 };

function line(x1, y1, x2, y2, kind) {
  return s("line", { x1, y1, x2, y2, class: kind });
}

function text(x, y, content, kind = null, anchor = null) {
  return s("text", { x, y, class: kind, "text-anchor": anchor }, content);
}

// The frame of a chart: its SVG, its two axes and the functions from values to pixels.
function axesOf(width, height, { x, y, name, xTitle, xTicks, yFormat, xFormat = (v) => v, right = MARGIN.right }) {
  const at = {
    x: (v) => MARGIN.left + ((v - x[0]) / (x[1] - x[0] || 1)) * (width - MARGIN.left - right),
    y: (v) => height - MARGIN.bottom - ((v - y[0]) / (y[1] - y[0] || 1)) * (height - MARGIN.top - MARGIN.bottom),
  };
  const svg = s("svg", { width, height, role: "img", "aria-label": name });
  for (const v of ticks(...y, 5)) {
    svg.append(line(MARGIN.left, at.y(v), width - right, at.y(v), "grid"));
    svg.append(text(MARGIN.left - 6, at.y(v) + 4, yFormat(v), null, "end"));
  }
  for (const v of xTicks) svg.append(text(at.x(v), height - MARGIN.bottom + 16, xFormat(v), "x-tick", "middle"));
  svg.append(text((MARGIN.left + width - right) / 2, height - 3, xTitle, null, "middle"));
  return { svg, at };
}

// Curves by layer. series: [{name, style: {color, dash}, points: [{x, y, low, high, title}]}], bounds: [{y, name}], `chosen`
// an x with a rule, `pick(x)` called by a click, `from` the start of the axis.
export function lineChart(
  box,
  { series, bounds = [], xs, height = 200, chosen = null, pick = null, from = null, ...axes },
) {
  const values = series.flatMap(({ points }) => points.flatMap(({ y, low = y, high = y }) => [low, high]));
  const y = range(values, [0, ...bounds.map((bound) => bound.y)]);
  if (from !== null) y[0] = from;
  const every = Math.ceil(xs.length / 12);
  const x = [xs[0], Math.max(xs.at(-1), xs[0] + 1)];
  responsive(box, (width) => {
    // Too narrow for names: the letters of the legend.
    const cut = ({ name }) => (name.length > 16 ? `${name.slice(0, 15)}…` : name);
    const endName = (curve) => (width < 380 ? curve.style.letter : cut(curve));
    const right = Math.min(120, Math.max(...series.map((curve) => 7 * endName(curve).length)) + 14);
    const xTicks = xs.filter((_, i) => i % every === 0);
    const { svg, at } = axesOf(width, height, { x, y, xTicks, right, ...axes });
    for (const bound of bounds.filter((b) => b.y >= y[0] && b.y <= y[1])) {
      const high = at.y(bound.y);
      svg.append(line(MARGIN.left, high, width - right, high, "bound"));
      svg.append(text(MARGIN.left + 4, high + (high > height - MARGIN.bottom - 16 ? -4 : 12), bound.name));
    }
    if (chosen !== null) svg.append(line(at.x(chosen), MARGIN.top, at.x(chosen), height - MARGIN.bottom, "rule"));
    const path = (pairs) => pairs.map(([a, b]) => `${at.x(a)},${at.y(b)}`).join(" ");
    for (const { points, style } of series) {
      const [low, high] = ["low", "high"].map((end) => points.map((p) => [p.x, p[end] ?? p.y]));
      const curve = { class: "curve", stroke: style.color, "stroke-dasharray": style.dash };
      svg.append(s("polygon", { points: path([...high, ...low.reverse()]), fill: style.color, opacity: 0.12 }));
      svg.append(s("polyline", { points: path(points.map((p) => [p.x, p.y])), ...curve }));
      for (const p of points) svg.append(marker(at.x(p.x), at.y(p.y), style, p.title ?? ""));
    }
    const ends = series.map((curve) => ({ curve, x: curve.points.at(-1).x, y: at.y(curve.points.at(-1).y) }));
    ends.sort((a, b) => a.y - b.y).forEach((end, i) => (end.y = Math.max(end.y, i ? ends[i - 1].y + 14 : 0)));
    for (const end of ends)
      svg.append(text(at.x(end.x) + 7, Math.min(end.y + 4, height - 6), endName(end.curve), "end-name"));
    for (const value of pick ? xs : []) {
      const size = { x: at.x(value) - 12, y: 0, width: 24, height: height - MARGIN.bottom };
      svg.append(s("rect", { ...size, class: "target" }));
      svg.lastChild.addEventListener("click", () => pick(value));
    }
    return svg;
  });
}

function marker(x, y, { color: fill, square }, title) {
  const form = square ? { x: x - 2.5, y: y - 2.5, width: 5, height: 5 } : { cx: x, cy: y, r: 3 };
  return s(square ? "rect" : "circle", { ...form, fill }, s("title", {}, title));
}

// Overlaid histograms. groups: [{style, bars: [{from, to, y, title}]}].
export function barChart(box, { groups, height = 170, ...axes }) {
  const bars = groups.flatMap(({ style, bars: own }) => own.map((bar) => ({ ...bar, fill: style.color })));
  const x = [Math.min(...bars.map((b) => b.from)), Math.max(...bars.map((b) => b.to))];
  const y = [0, Math.max(...bars.map((b) => b.y)) * 1.05 || 1];
  responsive(box, (width) => {
    const { svg, at } = axesOf(width, height, { x, y, xTicks: ticks(...x, 6), ...axes });
    for (const { from, to, y: share, title, fill } of bars) {
      const size = { x: at.x(from), width: Math.max(at.x(to) - at.x(from), 1), height: at.y(0) - at.y(share) };
      svg.append(s("rect", { ...size, y: at.y(share), fill, opacity: 0.5 }, s("title", {}, title)));
    }
    return svg;
  });
}

// Charts as plain SVG, redrawn when their width changes. Text is never scaled.

const NS = "http://www.w3.org/2000/svg";

export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

// Ticks of an axis: at most `most` of 1, 2, 5 x 10^i apart; whole numbers for `whole`.
export function ticks(low, high, most = 6, whole = false) {
  const rough = (high - low) / most;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((m) => m * power).find((size) => (high - low) / size <= most);
  if (whole) step = Math.max(1, Math.round(step));
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(12)),
  );
}

// The range of an axis: from 0 or a bound to a bound, or at least as long as 10 % of its largest value, so that noise
// does not fill a chart.
export function range(values, bounds = []) {
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

// The frame of a chart: its SVG, its two axes and the functions from values to pixels.
function frame(width, height, { x, y, name, xTitle, xTicks, yFormat, xFormat = (v) => v, right = MARGIN.right }) {
  const at = {
    x: (v) => MARGIN.left + ((v - x[0]) / (x[1] - x[0] || 1)) * (width - MARGIN.left - right),
    y: (v) => height - MARGIN.bottom - ((v - y[0]) / (y[1] - y[0] || 1)) * (height - MARGIN.top - MARGIN.bottom),
  };
  const svg = s("svg", { width, height, role: "img", "aria-label": name });
  for (const v of ticks(...y, 5)) {
    svg.append(s("line", { x1: MARGIN.left, x2: width - right, y1: at.y(v), y2: at.y(v), class: "grid" }));
    svg.append(s("text", { x: MARGIN.left - 6, y: at.y(v) + 4, "text-anchor": "end" }, yFormat(v)));
  }
  for (const v of xTicks)
    svg.append(
      s("text", { x: at.x(v), y: height - MARGIN.bottom + 16, "text-anchor": "middle", class: "x-tick" }, xFormat(v)),
    );
  svg.append(s("text", { x: (MARGIN.left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, xTitle));
  return { svg, at };
}

// Curves by layer. series: [{name, style: {color, dash}, points: [{x, y, low, high}]}], bounds: [{y, name}], `chosen` an x
// with a rule, `pick(x)` called by a click, `from` the start of the axis.
export function lineChart(
  box,
  { name, series, bounds = [], xTitle, xs, yFormat, height = 200, chosen = null, pick = null, from = null },
) {
  const values = series.flatMap(({ points }) => points.flatMap(({ y, low = y, high = y }) => [low, high]));
  const limits = range(values, [0, ...bounds.map(({ y }) => y)]);
  if (from !== null) limits[0] = from;
  const every = Math.ceil(xs.length / 12);
  responsive(box, (width) => {
    const letters = width < 380; // too narrow for names: the letters of the legend
    const endName = ({ name: text, style }) =>
      letters ? style.letter : text.length > 16 ? `${text.slice(0, 15)}…` : text;
    const right = Math.min(120, Math.max(...series.map((line) => 7 * endName(line).length)) + 14);
    const x = [xs[0], Math.max(xs.at(-1), xs[0] + 1)];
    const { svg, at } = frame(width, height, {
      x,
      y: limits,
      name,
      xTitle,
      xTicks: xs.filter((_, i) => i % every === 0),
      yFormat,
      right,
    });
    for (const { y, name: text } of bounds) {
      if (y < limits[0] || y > limits[1]) continue;
      svg.append(s("line", { x1: MARGIN.left, x2: width - right, y1: at.y(y), y2: at.y(y), class: "bound" }));
      svg.append(s("text", { x: MARGIN.left + 4, y: at.y(y) + (at.y(y) < 24 ? 12 : -4), class: "bound-name" }, text));
    }
    if (chosen !== null)
      svg.append(
        s("line", { x1: at.x(chosen), x2: at.x(chosen), y1: MARGIN.top, y2: height - MARGIN.bottom, class: "rule" }),
      );
    for (const { points, style } of series) {
      const band = [
        ...points.map((p) => [p.x, p.high ?? p.y]),
        ...[...points].reverse().map((p) => [p.x, p.low ?? p.y]),
      ];
      svg.append(
        s("polygon", {
          points: band.map(([a, b]) => `${at.x(a)},${at.y(b)}`).join(" "),
          fill: style.color,
          opacity: 0.12,
        }),
      );
      svg.append(
        s("polyline", {
          points: points.map((p) => `${at.x(p.x)},${at.y(p.y)}`).join(" "),
          class: "curve",
          stroke: style.color,
          "stroke-dasharray": style.dash,
        }),
      );
      for (const p of points) svg.append(marker(at.x(p.x), at.y(p.y), style, p.title ?? ""));
    }
    const ends = series
      .filter(({ points }) => points.length)
      .map((line) => ({ ...line, y: at.y(line.points.at(-1).y) }));
    ends.sort((a, b) => a.y - b.y).forEach((end, i) => (end.y = Math.max(end.y, i ? ends[i - 1].y + 14 : 0)));
    for (const end of ends)
      svg.append(
        s(
          "text",
          { x: at.x(end.points.at(-1).x) + 7, y: Math.min(end.y + 4, height - 6), class: "end-name" },
          endName(end),
        ),
      );
    if (pick)
      for (const value of xs) {
        const target = s("rect", {
          x: at.x(value) - 12,
          y: 0,
          width: 24,
          height: height - MARGIN.bottom,
          class: "target",
        });
        target.addEventListener("click", () => pick(value));
        svg.append(target);
      }
    return svg;
  });
}

function marker(x, y, { color: fill, square }, title) {
  const form = square
    ? s("rect", { x: x - 2.5, y: y - 2.5, width: 5, height: 5, fill })
    : s("circle", { cx: x, cy: y, r: 3, fill });
  form.append(s("title", {}, title));
  return form;
}

// Overlaid histograms. groups: [{style, bars: [{from, to, y, title}]}].
export function barChart(box, { name, groups, xTitle, xFormat, yFormat, height = 170 }) {
  const bars = groups.flatMap((group) => group.bars);
  const x = [Math.min(...bars.map((b) => b.from)), Math.max(...bars.map((b) => b.to))];
  const y = [0, Math.max(...bars.map((b) => b.y)) * 1.05 || 1];
  responsive(box, (width) => {
    const { svg, at } = frame(width, height, { x, y, name, xTitle, xTicks: ticks(...x, 6), yFormat, xFormat });
    for (const { bars: own, style } of groups)
      for (const b of own) {
        const rect = {
          x: at.x(b.from),
          width: Math.max(at.x(b.to) - at.x(b.from), 1),
          y: at.y(b.y),
          height: at.y(0) - at.y(b.y),
        };
        svg.append(s("rect", { ...rect, fill: style.color, opacity: 0.5 }, s("title", {}, b.title)));
      }
    return svg;
  });
}

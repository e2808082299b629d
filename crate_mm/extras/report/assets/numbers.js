// Numbers as text. Minus is U+2212, and the space before a unit does not break.

const minus = (text) => text.replace("-", "\u2212");

// A number with four significant digits.
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return minus(value.toExponential(2));
  return minus(value.toPrecision(Math.max(4, String(Math.trunc(size)).length)));
}

// At most three digits, or four of a larger number.
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return minus(value.toExponential(1));
  return minus(String(Number(value.toPrecision(size >= 1000 ? 4 : 3))));
}

// A share in percent: whole from 10, with `digits` more decimals if two of them must differ.
export function percent(share, digits = 0) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "less than 0.1\u00a0%";
  if (value > 99.9 && value < 100) return "over 99.9\u00a0%";
  return `${minus(String(Number(value.toFixed((Math.abs(value) < 9.95 ? 1 : 0) + digits))))}\u00a0%`;
}

// Two shares that are not the same, as texts that are not.
export function twoPercents(a, b) {
  const digits = [0, 1, 2, 3].find((more) => percent(a, more) !== percent(b, more)) ?? 0;
  return [percent(a, digits), percent(b, digits)];
}

// "1 image", "2 images".
export function countOf(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

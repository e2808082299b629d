// Buttons that play: a step every so often until the end, until any other input, or until the page is hidden.

import { h } from "./dom.js";

const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let playing = null; // {key, text, timer}

// A button that plays. `begin()` makes the first step; `next()` each other one, and returns false at the end.
export function playButton(key, text, { begin, next, milliseconds }) {
  const click = () => {
    const own = playing?.key === key;
    stopPlaying();
    if (own) return;
    const step = () => {
      if (document.hidden || !next()) stopPlaying();
    };
    playing = { key, text, timer: setInterval(step, still.matches ? 2500 : milliseconds) };
    begin();
  };
  const label = playing?.key === key ? "pause" : text;
  return h("button", { type: "button", "data-key": key, onclick: click }, label);
}

function stopPlaying() {
  if (!playing) return;
  const { key, text, timer } = playing;
  clearInterval(timer);
  playing = null;
  const button = document.querySelector(`[data-key="${key}"]`);
  if (button) button.textContent = text;
}

for (const kind of ["pointerdown", "keydown"])
  document.addEventListener(kind, ({ target }) => {
    if (target.dataset?.key !== playing?.key) stopPlaying();
  });

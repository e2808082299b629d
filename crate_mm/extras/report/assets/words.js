// Words explained where they stand: a button with a dotted line shows its meaning on hover, focus and tap.

import { h } from "./dom.js";
import { headsOf, report } from "./data.js";
import { state } from "./state.js";

const DELAY = 150;

function facts() {
  const model = report.models[state.a];
  const [prefix, rows, columns] = model.grid ?? [0, 0, 0];
  const { running } = model;
  const width = running?.width;
  const rate = (name, i) => (model.bounds?.[name] ? Number(model.bounds[name][i].toPrecision(3)) : null);
  return {
    model,
    running,
    n: rows * columns,
    N: prefix + rows * columns,
    d: width ?? model.width,
    K: headsOf(model),
    p: running?.head_dims[0],
    rate,
  };
}

const MEANINGS = {
  token: ({ d, n }) =>
    `A vector of ${d} numbers. The image is cut into ${n} patches, and each patch becomes a token. Every layer rewrites all tokens.`,
  "class token": ({ model }) => {
    const answer = {
      cls: "The answer is read from it alone.",
      mean: "This model reads its answer from the mean of all tokens, this one among them.",
    };
    return `One extra token that is no patch. It starts the same for every image. ${answer[model.pool] ?? ""}`;
  },
  head: ({ K }) =>
    `One of ${K} parts of the compression step that work side by side. A head compares tokens only within its own subspace.`,
  subspace: ({ p, d }) =>
    p
      ? `${p} directions out of ${d} that a head has learned. A token's shadow on them is the ${p} numbers that this head sees.`
      : "Directions that a head has learned. A token's shadow on them is what this head sees.",
  compression: () =>
    "First half of a layer. Each head mixes the shadows of tokens that resemble each other; what comes out is mapped back and added to the tokens. They become more alike.",
  sparsification: () =>
    "Second half of a layer. The dictionary corrects each number, a threshold is subtracted, and what is then below 0 becomes 0.",
  "coding rate R": ({ rate }) =>
    `About how many nats it takes to write all tokens of an image down with a small fixed error. ${rate("r_out", 0) ? `Copies of one token are cheap (${rate("r_out", 0)}), tokens at right angles dear (${rate("r_out", 1)}).` : ""}`,
  Rᶜ: () =>
    "The coding rate of the tokens in each head's subspace, summed over the heads; it may therefore be larger than R. Low: within every subspace the tokens are alike. Compression is derived to lower it.",
  nats: () => "Units of information. 1 nat is 1.44 bits.",
  code: ({ d }) => `What the layer hands on: ${d} numbers a token, none below 0, many exactly 0.`,
  ISTA: () =>
    "Iterative shrinkage-thresholding. One step towards a code with few non-zero numbers from which the dictionary still rebuilds the token.",
  lambda: ({ running }) =>
    `The price of a number that is not 0. ${running ? `A step takes eta × lambda = ${Number((running.eta[0] * running.lambda[0]).toPrecision(3))} off each and cuts at 0. Trained with ${running.lambda[0]}.` : "A step takes eta × lambda off each number and cuts at 0."}`,
  direction: ({ d }) =>
    `One of the ${d} columns of the layer's dictionary D. Tokens are rebuilt from them; number j of the code is the amount of direction j.`,
  objective: () =>
    "R − Rᶜ − λ‖Z‖₀: tokens that differ as a whole, are alike within each subspace, and have few entries that are not 0. Here, Rᶜ is of the layer's output Z, after the sparsification. Each layer was derived as one step of raising it.",
};

export function explainWords() {
  const box = h("div", { id: "word", role: "tooltip", hidden: true });
  document.body.append(box);
  let timer = null;
  let open = null;
  const show = (button) => {
    const meaning = MEANINGS[button.dataset.term];
    box.textContent = meaning(facts());
    box.hidden = false;
    open = button;
    button.setAttribute("aria-describedby", "word");
    const at = button.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left), innerWidth - box.offsetWidth - 8);
    const below = at.bottom + box.offsetHeight < innerHeight;
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${(below ? at.bottom : at.top - box.offsetHeight) + scrollY}px`;
  };
  const hide = () => {
    clearTimeout(timer);
    open?.removeAttribute("aria-describedby");
    box.hidden = true;
    open = null;
  };
  for (const button of document.querySelectorAll(".term")) {
    button.addEventListener("pointerenter", () => (timer = setTimeout(() => show(button), DELAY)));
    button.addEventListener("pointerleave", (event) => {
      clearTimeout(timer);
      if (event.relatedTarget !== box && document.activeElement !== button) hide();
    });
    button.addEventListener("focus", () => show(button));
    button.addEventListener("blur", hide);
    button.addEventListener("click", () => show(button));
    button.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  }
  box.addEventListener("pointerleave", () => document.activeElement !== open && hide());
}

"""Generate text with a causal language model. Shapes: V tokens of the vocabulary."""

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from ..datasets.tokenizers import tokenizer_of
from ..io.log import print_log
from ..models import LanguageModel
from .model_factory import load_model

REPLACEMENT = "\ufffd"  # decoded form of an incomplete character
MAX_PENDING = 8  # largest number of tokens held back until a character is complete


class TextGenerator:
    """Continue texts with a causal language model::

        generate = TextGenerator("work_dirs/causal_crate_mini_python/epoch_3.pth")
        generate("def ", max_tokens=100, temperature=0.8, seed=0)
        for piece in generate.stream("def "):
            print(piece, end="", flush=True)

    The keys and values of earlier tokens are cached. When all positions of the model are used, only the last half of
    the context is kept: it moves to the first positions, and its cache is recomputed.

    Args:
        model: a ``LanguageModel``, or a checkpoint of one as for ``init_model(None, checkpoint)``.
        tokenizer: tokenizer file that the checkpoint names; not needed if the model was trained on bytes.

    Raises:
        CheckpointError: (a ``ValueError``) the checkpoint cannot be opened, or does not define its model.
        ValueError: the model is not a language model, or the tokenizer is missing or differs from the checkpoint's.
    """

    def __init__(self, model: nn.Module | str | Path, tokenizer: str | Path | None = None) -> None:
        model = load_model(model) if isinstance(model, (str, Path)) else model
        if not isinstance(model, LanguageModel):
            raise ValueError(f"expected a LanguageModel to generate text, got the task {type(model).__name__}")
        self.model, self.tokenizer = model.eval(), tokenizer_of(model.tokenizer, tokenizer)
        if self.tokenizer.vocab_size > model.backbone.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size:,} tokens, the model {model.backbone.vocab_size:,}: "
                "give the tokenizer that the model was trained with"
            )

    def __call__(self, prompt: str | bytes = "", **options) -> str:
        """Return the continuation of a prompt, without the prompt; for the options see ``stream``."""
        return "".join(self.stream(prompt, **options))

    def stream(
        self,
        prompt: str | bytes = "",
        max_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Yield the continuation of a prompt in pieces, up to the end of the document or ``max_tokens``.

        Args:
            prompt: beginning of the text. The end-of-document token is inserted before it, as before each document in
                training. If the prompt has more tokens than the model has positions, only its last tokens are used, as
                many as half of the positions, and the log says so.
            max_tokens: largest number of tokens to generate.
            temperature: divisor of the logits; 0 selects the most likely token.
            top_k: sample only from the k most likely tokens.
            top_p: sample only from the smallest set of most likely tokens with a total probability of at least p.
            seed: seed of the sampling (default: random).

        Raises:
            ValueError: an option is out of range, or the tokenizer does not accept the prompt.
        """
        _check(max_tokens, temperature, top_k, top_p)
        text = prompt.encode() if isinstance(prompt, str) else prompt
        ids = [self.tokenizer.end, *self.tokenizer.encode(text).tolist()]
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        return self._pieces(self._sample(ids, max_tokens, (temperature, top_k, top_p), generator))

    def _pieces(self, ids: Iterator[int]) -> Iterator[str]:
        """Yield the text of token IDs as soon as its characters are complete."""
        before, pending = [], []  # the text of a token may depend on the token before it
        for token in ids:
            pending.append(token)
            piece = self._text_after(before, pending)
            if not piece.endswith(REPLACEMENT) or len(pending) >= MAX_PENDING:
                yield piece
                before, pending = pending, []
        if pending:
            yield self._text_after(before, pending)

    def _text_after(self, before: list[int], ids: list[int]) -> str:
        return self.tokenizer.decode([*before, *ids])[len(self.tokenizer.decode(before)) :]

    def _sample(self, ids: list[int], max_tokens: int, options: tuple, generator: torch.Generator) -> Iterator[int]:
        backbone, known = self.model.backbone, self.model.backbone.context_length
        keep = max(known // 2, 1)
        if len(ids) > known:
            print_log(
                f"the prompt has {len(ids)} tokens, the model {known} positions: using the last {keep} tokens",
                "current",
            )
            ids = ids[-keep:]
        device = next(backbone.parameters()).device
        cache, new = backbone.new_cache(), ids
        for number in count():
            if len(ids) > known:
                ids = ids[-keep:]
                cache, new = backbone.new_cache(), ids
            # Inside the loop: at each yield, inference mode would otherwise also apply to the caller.
            with torch.inference_mode():
                tokens = backbone(torch.tensor([new], device=device), cache=cache)
                logits = backbone.logits(tokens[:, -1:])[0, 0, : self.tokenizer.vocab_size].double().cpu()
                token = int(choose(logits, *options, generator))
            if token == self.tokenizer.end:
                return
            yield token
            if number + 1 >= max_tokens:
                return
            new = [token]
            ids = [*ids, token]


def choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """Return a token ID drawn from logits ``(V,)``; for the options see ``TextGenerator.stream``."""
    if temperature == 0:
        return logits.argmax()
    logits = logits / temperature
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    probabilities = logits.softmax(0)
    if top_p is not None:
        values, order = probabilities.sort(descending=True, stable=True)
        probabilities[order[values.cumsum(0) - values >= top_p]] = 0
    return torch.multinomial(probabilities, 1, generator=generator)[0]


def _check(max_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ``ValueError`` for an option that is out of range."""
    checks = (
        ("max_tokens", max_tokens, "a positive integer", type(max_tokens) is int and max_tokens >= 1),
        ("temperature", temperature, "a finite number of at least 0", 0 <= temperature < math.inf),
        ("top_k", top_k, "a positive integer", top_k is None or (type(top_k) is int and top_k >= 1)),
        ("top_p", top_p, "a number above 0, up to 1", top_p is None or 0 < top_p <= 1),
    )
    for name, value, expected, is_valid in checks:
        if not is_valid:
            raise ValueError(f"{name} must be {expected}, got {value!r}")

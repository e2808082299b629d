"""Measure generation and training of language models by the number of tokens, and the size of the cache.

python tools/benchmarks/generation.py --json generation.json

The families of configs/compare_language, of the same width and depth, with random weights. A row has the milliseconds
of a generated token after N earlier ones, with the cache and without it, the cache's bytes, and the thousand tokens per
second of training on windows of N tokens.
"""

import time
from collections.abc import Callable

import torch
from machine import report

from crate_mm.cli.options import Parser, check_writable, positive_int, user_errors
from crate_mm.config import load_config
from crate_mm.models import LanguageModel
from crate_mm.registry import MODELS

FAMILIES = ("crate", "crate_overcomplete", "tost", "aot", "gpt2")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--models", nargs="+", default=FAMILIES, choices=FAMILIES, help="families (default: all)")
    parser.add_argument("--lengths", nargs="+", type=positive_int, default=[128, 512, 2048], help="numbers of tokens N")
    parser.add_argument("--rounds", type=positive_int, default=5, help="the fastest of them counts (default: 5)")
    parser.add_argument("--tokens", type=positive_int, default=4096, help="tokens of a training step (default: 4096)")
    parser.add_argument("--json", metavar="FILE", help="file of the rows")
    args = parser.parse_args()
    with user_errors():
        check_writable(args.json)
        rows = (measure(name, length, args) for name in args.models for length in args.lengths)
        report("generation and training of language models", rows, vars(args), args.json)


def measure(name: str, length: int, args) -> dict:
    overrides = {"model.backbone.context_length": length + 1}
    torch.manual_seed(0)
    model: LanguageModel = MODELS.build(load_config(f"compare_language/{name}", overrides).model).eval()
    ids = torch.randint(model.backbone.vocab_size, (1, length + 1))
    with torch.inference_mode():
        cached, cache_bytes = after_cache(model, ids, args.rounds)
        whole = fastest(lambda: model.backbone.logits(model.backbone(ids)[:, -1:]), args.rounds)
    batch = torch.randint(model.backbone.vocab_size, (max(args.tokens // length, 1), length + 1))
    model.train()
    training = fastest(lambda: step(model, batch), args.rounds)
    return {
        "model": name,
        "tokens": length,
        "ms per token": 1e3 * cached,
        "ms without cache": 1e3 * whole,
        "cache bytes": cache_bytes,
        "thousand tokens/s in training": batch[:, 1:].numel() / training / 1e3,
    }


def after_cache(model: LanguageModel, ids: torch.Tensor, rounds: int) -> tuple[float, int]:
    """Return the seconds of the last token after a cache of all others, and the cache's bytes."""

    seconds, held = [], 0
    for _ in range(rounds):
        cache = model.backbone.new_cache()
        model.backbone(ids[:, :-1], cache=cache)
        start = time.perf_counter()
        model.backbone.logits(model.backbone(ids[:, -1:], cache=cache))
        seconds.append(time.perf_counter() - start)
        values = [value for layer in cache.layers for value in layer.values()]
        held = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    return min(seconds), held


def step(model: LanguageModel, batch: torch.Tensor) -> None:
    model.zero_grad()
    model(batch[:, :-1], labels=batch[:, 1:], mode="loss")["loss"].backward()


def fastest(run: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest of some runs, after one that is not timed."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()

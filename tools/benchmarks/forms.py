"""Shared parts of train_step.py and inference.py: arguments, models, and a row of results for each form."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from machine import (
    PRECISIONS,
    add_timing_options,
    matmul_rate,
    median_ratio,
    peak_memory_mb,
    synchronize,
    time_in_turns,
)

from crate_mm import get_model, list_models
from crate_mm.analysis.cost import count_complexity
from crate_mm.cli.options import positive_int
from crate_mm.models import CRATE, ImageClassifier


def parse_args(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=list_models(), default=["crate_tiny", "crate_base"], metavar="NAME"
    )
    parser.add_argument("--batch", type=positive_int, default=16, help="images per batch (default: 16)")
    parser.add_argument("--img-size", type=positive_int, default=224, help="image size (default: 224)")
    parser.add_argument("--threads", type=positive_int, help="number of CPU threads (default: PyTorch's)")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["float32", "bf16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="measure compiled forms")
    add_timing_options(parser, rounds=7)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def build(name: str, args: argparse.Namespace, device: str) -> ImageClassifier:
    """Build the model, with the same weights each time."""
    torch.manual_seed(0)
    return get_model(name, img_size=args.img_size).to(device)


def is_crate(model: ImageClassifier) -> bool:
    """Return whether a model has a textbook form and a fused form."""
    return isinstance(model.backbone, CRATE)


def first_seconds(forms: dict[tuple[str, str], Callable]) -> dict[tuple[str, str], float]:
    """Return the seconds of each form's first run; a form that runs out of GPU memory is reported and left out."""
    seconds = {}
    for (form, precision), run in forms.items():
        start = time.perf_counter()
        try:
            run()
            synchronize()
        except torch.OutOfMemoryError:
            print(f"{form} in {precision}: the GPU is out of memory, so this form has no row")
            torch.cuda.empty_cache()
            continue
        seconds[form, precision] = time.perf_counter() - start
    return seconds


def measure_forms(
    name: str, forms: dict[tuple[str, str], Callable], passes: int, args: argparse.Namespace, device: str
) -> Iterator[dict]:
    """Time forms, by (form, precision), in turns, and compare the others with the first.

    The fraction of the matmul rate counts the multiply-adds of the plain model for every form; a training step counts
    as three forward passes.
    """
    counted = min(args.batch, 16)  # ISTA takes the same form for more images
    images = torch.zeros(counted, 3, args.img_size, args.img_size)
    work = passes * count_complexity(build(name, args, "cpu"), images).flops * args.batch / counted
    rounds = min(2 * args.rounds, 10)
    rates = {precision: matmul_rate(device, precision, rounds=rounds) for precision in args.precisions}
    seconds = time_in_turns(forms, args.rounds, args.steps)
    first = next(iter(seconds.values()))
    for (form, precision), times in seconds.items():
        median = statistics.median(times)
        yield {
            "model": name,
            "form": form,
            "precision": precision,
            "images_per_s": args.batch / median,
            "times_the_first": median_ratio(first, times),
            "share_of_matmul_rate": work / median / rates[precision],
            "peak_MB": peak_memory_mb(forms[form, precision]),
        }

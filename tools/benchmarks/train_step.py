"""Measure images per second of a training step (forward, loss, backward, Lion) or of inference, by form of the model.

python tools/benchmarks/train_step.py --json train_step.json
python tools/benchmarks/train_step.py --models crate_tiny crate_small crate_base crate_large vit_small --batch 256
python tools/benchmarks/train_step.py --inference --json inference.json
python tools/benchmarks/train_step.py --profile 40 --models crate_base --batch 256 --precisions bf16

The forms are textbook, plain, fused (inference only) and compiled. They take turns in one run, with several steps per
turn; a ratio is the median over the rounds. ``first step s`` includes compilation. A model's rows are written before
the next model is measured.

``--profile`` lists the slowest kernels (on a CPU, operators) instead. The first row is the whole step, timed without
the profiler. The next two rows are the times of all kernels and of the host, which overlap on a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from machine import (
    PRECISIONS,
    add_timing_options,
    in_precision,
    least_seconds,
    matmul_rate,
    median_ratio,
    peak_memory_mb,
    report,
    synchronize,
    time_in_turns,
)
from mmengine.device import get_device
from textbook import textbook_logits
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from crate_mm import get_model, list_models
from crate_mm.analysis.cost import count_complexity
from crate_mm.cli.options import check_writable, positive_int, user_errors
from crate_mm.engine.optim.wrapper import Lion, OptimWrapper
from crate_mm.engine.parallel.blocks import compile_blocks
from crate_mm.models import CRATE, ImageClassifier


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=list_models(), default=["crate_tiny", "crate_base"], metavar="NAME"
    )
    parser.add_argument("--inference", action="store_true", help="measure inference instead of a training step")
    parser.add_argument("--profile", type=positive_int, metavar="ROWS", help="list the ROWS slowest kernels of a step")
    parser.add_argument("--batch", type=positive_int, default=16, help="images per batch (default: 16)")
    parser.add_argument("--img-size", type=positive_int, default=224, help="image size (default: 224)")
    parser.add_argument("--threads", type=positive_int, help="number of CPU threads (default: PyTorch's)")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["float32", "bf16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="measure compiled forms")
    add_timing_options(parser, rounds=7)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(), torch.inference_mode(args.inference):
        check_writable(args.json)
        if args.threads:
            torch.set_num_threads(args.threads)
        of_model = profiled if args.profile else measure
        rows = (row for name in args.models for row in of_model(name, args, get_device()))
        what = "inference" if args.inference else "training step"
        report(f"{what}, batch {args.batch}, {args.img_size} x {args.img_size}", rows, vars(args), args.json)


def build(name: str, args: argparse.Namespace, device: str) -> ImageClassifier:
    """Build the model, with the same weights each time."""
    torch.manual_seed(0)
    return get_model(name, img_size=args.img_size).to(device)


def forms_of(name: str, args: argparse.Namespace, device: str) -> Iterator[tuple[str, nn.Module, Callable]]:
    """Yield for each form its name, its own copy of the model, and its forward pass."""
    model = build(name, args, device)
    is_crate = isinstance(model.backbone, CRATE)  # a ViT has no textbook form and no fused form
    if is_crate:
        yield "textbook", model, partial(textbook_logits, model)
        model = build(name, args, device)
    yield "plain", model, model
    fuses = args.inference and is_crate
    for form in ["fused"] * fuses + ["compiled"] * args.compile:
        model = build(name, args, device)
        if fuses:
            model.backbone.fuse()
        if form == "compiled":
            compile_blocks(model)
        yield form, model, model


def random_batch(args: argparse.Namespace, device: str) -> tuple[Tensor, Tensor]:
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=device)
    return images, torch.randint(1000, (args.batch,), device=device)


def step(model: nn.Module, forward: Callable, batch: tuple[Tensor, Tensor], inference: bool) -> Callable:
    """Return a step of a model on a batch as a function: a training step, or the logits of its images."""
    images, labels = batch
    if inference:
        return partial(forward, images)
    wrapper = OptimWrapper(optimizer=Lion(model.train().parameters(), lr=1e-5, weight_decay=0.5))

    def train() -> None:
        wrapper.update_params(F.cross_entropy(forward(images), labels, label_smoothing=0.1))

    return train


def measure(name: str, args: argparse.Namespace, device: str) -> Iterator[dict]:
    """Time the forms in turns, in each precision, and compare each with the first.

    The fraction of the matmul rate counts the multiply-adds of the plain model for every form; a training step counts
    as three forward passes.

    Raises:
        AssertionError: a form's logits differ from those of the plain form in inference.
    """
    batch, runs = random_batch(args, device), {}
    for form, model, forward in forms_of(name, args, device):
        runs[form] = step(model, forward, batch, args.inference)
    timed = {
        (form, precision): in_precision(run, precision, device)
        for precision in args.precisions
        for form, run in runs.items()
    }
    first_step = first_seconds(timed)
    if args.inference:
        logits = {form: in_precision(run, "float32", device)() for form, run in runs.items()}
        for form, value in logits.items():
            message = f"{form} form gives other logits"
            torch.testing.assert_close(value, logits["plain"], rtol=1e-4, atol=1e-4, msg=message)
    counted = min(args.batch, 16)  # ISTA takes the same form for more images
    flops = count_complexity(build(name, args, "cpu"), torch.zeros(counted, 3, args.img_size, args.img_size)).flops
    work = (1 if args.inference else 3) * flops * args.batch / counted
    rates = {p: matmul_rate(device, p, rounds=min(2 * args.rounds, 10)) for p in args.precisions}
    seconds = time_in_turns({key: timed[key] for key in first_step}, args.rounds, args.steps)
    for (form, precision), times in seconds.items():
        median = statistics.median(times)
        yield {
            "model": name,
            "form": form,
            "precision": precision,
            "images_per_s": args.batch / median,
            "times_the_first": median_ratio(next(iter(seconds.values())), times),
            "share_of_matmul_rate": work / median / rates[precision],
            "peak_MB": peak_memory_mb(timed[form, precision]),
            "first_step_s": first_step[form, precision],
        }


def profiled(name: str, args: argparse.Namespace, device: str) -> Iterator[dict]:
    """Profile the last form, compiled if ``--compile``, in each precision."""
    batch, (*_, (_, model, forward)) = random_batch(args, device), forms_of(name, args, device)
    for precision in args.precisions:
        run = in_precision(step(model, forward, batch, args.inference), precision, device)
        run()
        whole, _ = least_seconds(run, times=args.steps)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        with profile(activities=activities) as profiler:
            for _ in range(args.steps):
                run()
            synchronize()
        events = profiler.key_averages()
        # Exclude an operator's own event on the GPU: it includes its kernels, which have their own events.
        host = {e.key: (e.self_cpu_time_total, e.count) for e in events if e.device_type == DeviceType.CPU}
        gpu = {e.key: (e.self_device_time_total, e.count) for e in events if e.device_type != DeviceType.CPU}
        kernels = gpu or host

        def row(what: str, microseconds: float, times: float) -> dict:
            ms = microseconds / 1e3
            return {"what": what[:110], "ms_a_step": ms, "times": times, "share": ms / (1e3 * whole)}  # noqa: B023

        yield row("the step", 1e6 * whole, 1)
        for what, times in (("all kernels", kernels), ("the host", host)):
            yield row(what, *(sum(column) / args.steps for column in zip(*times.values())))
        slowest = sorted(((time, key, count) for key, (time, count) in kernels.items() if time), reverse=True)
        for microseconds, key, count in slowest[: args.profile]:
            yield row(key, microseconds / args.steps, count / args.steps)


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


if __name__ == "__main__":
    main()

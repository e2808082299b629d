"""Profile a training step with PyTorch's profiler, by kernel on a GPU and by operator on a CPU.

python tools/benchmarks/profile_step.py --model crate_base --batch 256 --precision bf16 --json profile.json

The first rows are the whole step, unprofiled, and the times of its kernels and of the host, which overlap on a GPU.
"""

import argparse
from collections.abc import Iterator

import torch
from forms import build
from machine import PRECISIONS, in_precision, least_seconds, report, synchronize
from mmengine.device import get_device
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from train_step import step

from crate_mm import list_models
from crate_mm.cli.options import check_writable, positive_int, user_errors
from crate_mm.engine.parallel.blocks import compile_blocks


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list_models(), default="crate_base", metavar="NAME")
    parser.add_argument("--batch", type=positive_int, default=16, help="images per batch (default: 16)")
    parser.add_argument("--img-size", type=positive_int, default=224, help="image size (default: 224)")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="default: float32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument("--steps", type=positive_int, default=3, help="number of profiled steps (default: 3)")
    parser.add_argument(
        "--rows", type=positive_int, default=40, help="number of kernels, the slowest first (default: 40)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON that is whole after each row")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.json)
        title = f"training step of {args.model}, batch {args.batch}"
        report(title, measure(args), vars(args), args.json)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    device = get_device()
    model = build(args.model, args, device)
    if args.compile:
        compile_blocks(model)
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=device)
    labels = torch.randint(1000, (args.batch,), device=device)
    run = in_precision(step(model, model, images, labels), args.precision, device)
    run()
    whole, _ = least_seconds(run, times=args.steps)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiled:
        for _ in range(args.steps):
            run()
        synchronize()
    # Exclude an operator's own event on the GPU: it includes its kernels, which have their own events.
    of_host = [event for event in profiled.key_averages() if event.device_type == DeviceType.CPU]
    of_gpu = [event for event in profiled.key_averages() if event.device_type != DeviceType.CPU]
    host = {event.key: (event.self_cpu_time_total, event.count) for event in of_host}
    kernels = {event.key: (event.self_device_time_total, event.count) for event in of_gpu} or host

    def row(what: str, microseconds: float, times: float) -> dict:
        ms = microseconds / 1e3
        return {"what": what[:110], "ms_a_step": ms, "times": times, "share": ms / (1e3 * whole)}

    yield row("the step", 1e6 * whole, 1)
    for what, events in (("all kernels", kernels), ("the host", host)):
        yield row(what, *(sum(column) / args.steps for column in zip(*events.values())))
    longest = sorted(((time, name, count) for name, (time, count) in kernels.items() if time), reverse=True)
    for time, name, count in longest[: args.rows]:
        yield row(name, time / args.steps, count / args.steps)


if __name__ == "__main__":
    main()

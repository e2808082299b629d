"""Measure an epoch from JPEGs through the Runner, and the overhead of the Runner over a bare loop.

python tools/benchmarks/end_to_end.py --config crate_tiny_in1k --images 512 --batch 16 --json end_to_end.json

The photographs are generated. A bare loop of the same model on one batch in memory measures the step alone; the Runner
on the same batch measures the Runner's overhead. An epoch's speed excludes the first steps, with batches loaded before
training began, and the last steps, when nothing is left to load. The row "its start and end included" is the whole
epoch. ``--short-side`` adds epochs from the same photographs, shrunk and packed.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from machine import report, synchronize
from mmengine.device import get_device
from mmengine.hooks import Hook
from photographs import write_tree

from crate_mm.cli.options import check_writable, positive_int, user_errors
from crate_mm.engine import Runner, amp_optim_wrapper, load_config

PACK = Path(__file__).resolve().parents[1] / "pack_dataset.py"
STEPS = 40  # maximum in the comparison with a bare loop


class StepTimes(Hook):
    """Times of an epoch's start and end, and of the ends of selected steps, synchronized with the device."""

    priority = "VERY_LOW"

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.ends: dict[int, float] = {}

    def before_train_epoch(self, runner) -> None:
        self.began = time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx in self.steps:
            synchronize()
            self.ends[batch_idx] = time.perf_counter()

    def after_train_epoch(self, runner) -> None:
        synchronize()
        self.ended = time.perf_counter()

    @property
    def seconds_per_step(self) -> float:
        first, last = self.steps
        return (self.ends[last] - self.ends[first]) / (last - first)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="crate_tiny_in1k", help="an ImageNet config (default: crate_tiny_in1k)")
    parser.add_argument("--images", type=positive_int, default=512, help="photographs of an epoch (default: 512)")
    parser.add_argument("--batch", type=positive_int, default=16, help="global batch (default: 16)")
    parser.add_argument("--workers", type=positive_int, default=2, help="number of loader workers (default: 2)")
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="rounds of the comparison with a bare loop (default: 3)"
    )
    parser.add_argument(
        "--short-side",
        type=positive_int,
        nargs="+",
        default=[],
        help="also measure photographs packed at this short side, in pixels",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--json", metavar="FILE", help="write the results here, as JSON; rewritten after each row")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        check_writable(args.json)
        root = write_tree(Path(folder) / "data", args.images)
        report(f"{args.config}, batch {args.batch}", measure(args, root, Path(folder)), vars(args), args.json)


def measure(args: argparse.Namespace, root: Path, folder: Path) -> Iterator[dict]:
    bare, run = compare_with_bare_loop(args, root, folder)

    def row(what: str, seconds: float) -> dict:
        return {"what": what, "images_per_s": args.batch / seconds, "times_the_bare_loop": bare / seconds}

    yield row("a bare loop, no loading", bare)
    yield row("the Runner, no loading", run)
    for side in (None, *args.short_side):
        what = "an epoch from JPEGs, by the Runner"
        if side:
            what += f", packed at short side {side}"
            root = pack(folder / "data", folder / f"packed{side}", side)
        counted, whole = seconds_of_epoch(args, root, folder)
        yield row(what, counted)
        yield row(f"{what}, its start and end included", whole)


def pack(root: Path, target: Path, side: int) -> Path:
    if not (root / "val").exists():
        write_tree(root, 1, splits=("val",))
    command = [sys.executable, PACK, root, target, "--short-side", str(side)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def build_runner(args: argparse.Namespace, root: Path, folder: Path, hook: Hook) -> Runner:
    cfg = load_config(
        args.config, {"data_root": str(root), "global_batch_size": args.batch, "model.head.num_classes": 10}
    )
    cfg.train_dataloader.num_workers = args.workers
    cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup = 1, 0.5
    for part in ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"):
        cfg[part] = None
    cfg.default_hooks.checkpoint.save_best = None
    cfg.default_hooks.checkpoint.interval = 1000
    cfg.custom_hooks = [hook_cfg for hook_cfg in cfg.custom_hooks if hook_cfg.type != "ResultFile"]
    cfg.visualizer = None
    cfg.work_dir, cfg.log_level = str(folder / "work"), "ERROR"
    if args.amp:
        cfg.optim_wrapper.update(amp_optim_wrapper())
    runner = Runner.from_cfg(cfg)
    runner.logger.setLevel(logging.ERROR)
    runner.register_hook(hook)
    return runner


def seconds_of_epoch(args: argparse.Namespace, root: Path, folder: Path) -> tuple[float, float]:
    """Return seconds per step of an epoch: while the loader loads, and averaged over the whole epoch."""
    hook = StepTimes()
    runner = build_runner(args, root, folder, hook)
    hook.steps = counted_steps(args, runner)
    runner.train()
    return hook.seconds_per_step, (hook.ended - hook.began) / (args.images // args.batch)


def counted_steps(args: argparse.Namespace, runner: Runner) -> tuple[int, int]:
    """Return two steps: an epoch is timed from the end of the first to the end of the second.

    Raises:
        ValueError: the epoch is too short to leave steps between them.
    """
    loader = runner.cfg.train_dataloader
    queue = loader.num_workers * loader.get("prefetch_factor", 2) + 1  # prefetched by the workers and the Runner
    steps = args.images // args.batch
    if steps < 2 * queue + 2:
        raise ValueError(
            f"an epoch of {steps} steps is too short to time: {queue} batches may be ready before the first step, and "
            f"nothing is left to load in the last {queue}. Give --images {(3 * queue + 1) * args.batch} or more"
        )
    return queue, steps - 1 - queue


def compare_with_bare_loop(args: argparse.Namespace, root: Path, folder: Path) -> tuple[float, float]:
    """Return seconds per step of a bare loop and of the Runner, with the same model and batch, in turns."""
    steps = min(args.images // args.batch, STEPS)
    hook = StepTimes(min(3, steps - 2), steps - 1)
    runner = build_runner(args, root, folder, hook)
    counted_steps(args, runner)  # raises if the epoch is too short, before anything is measured
    runner.process_settings.apply()  # until this process ends, because the steps run outside of train()
    runner.build_for_training()
    runner.call_hook("before_train")
    runner.call_hook("before_train_epoch")
    batch = next(iter(runner.train_dataloader))
    bare, run = [], []
    for _ in range(args.rounds):
        bare.append(bare_loop(runner, batch, *hook.steps))
        run.append(runner_loop(runner, batch, hook))
    return statistics.median(bare), statistics.median(run)


def bare_loop(runner: Runner, batch: dict, first: int, last: int) -> float:
    model, wrapper = runner.model.train(), runner.optim_wrapper
    ends = {}
    for step in range(last + 1):
        data = model.data_preprocessor(batch, training=True)
        with torch.autocast(get_device(), torch.bfloat16, enabled=hasattr(wrapper, "dtype")):
            loss = model(data["inputs"], data["labels"], mode="loss")["loss"]
        wrapper.update_params(loss)
        if step in (first, last):
            synchronize()
            ends[step] = time.perf_counter()
    return (ends[last] - ends[first]) / (last - first)


def runner_loop(runner: Runner, batch: dict, hook: StepTimes) -> float:
    for step in range(hook.steps[1] + 1):
        runner.train_loop.run_iter(step, batch)
    return hook.seconds_per_step


if __name__ == "__main__":
    main()

"""An epoch from JPEGs to a trained model, through the Runner, and what the Runner adds to a bare loop.

python tools/benchmarks/end_to_end.py --config crate_tiny_in1k --images 512 --batch 16 --json end_to_end.json

The tree of photographs is generated. A bare loop of the same model on a batch that is already there shows what of the
epoch is the step, and the Runner on the same batch what the Runner costs.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import report, synchronize
from mmengine.device import get_device
from mmengine.hooks import Hook
from photographs import write_tree

from crate_mm.cli.options import check_writable, one_sentence_errors, positive
from crate_mm.engine import Runner, amp_optim_wrapper, load_config


class StepTimes(Hook):
    """The seconds between the ends of the iterations of a run, without the first ones."""

    priority = "VERY_LOW"

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.ends: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx == self.skip:
            synchronize()
        self.ends.append(time.perf_counter())

    def after_train_epoch(self, runner) -> None:
        synchronize()
        self.ends[-1] = time.perf_counter()

    @property
    def seconds_per_step(self) -> float:
        counted = self.ends[self.skip :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="crate_tiny_in1k", help="an ImageNet config (default: crate_tiny_in1k)")
    parser.add_argument("--images", type=positive, default=512, help="photographs of an epoch (default: 512)")
    parser.add_argument("--batch", type=positive, default=16, help="global batch (default: 16)")
    parser.add_argument("--workers", type=positive, default=2, help="of the loader (default: 2)")
    parser.add_argument("--rounds", type=positive, default=3, help="of the comparison with a bare loop (default: 3)")
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors(), tempfile.TemporaryDirectory() as folder:
        check_writable(args.json)
        root = write_tree(Path(folder) / "data", args.images)
        epoch = seconds_of_epoch(args, root, Path(folder))
        bare, run = compare_with_bare_loop(args, root, Path(folder))
        seconds = {
            "an epoch from JPEGs, by the Runner": epoch,
            "the Runner, no loading": run,
            "a bare loop, no loading": bare,
        }
        rows = [
            {"what": what, "images_per_s": args.batch / taken, "times_the_bare_loop": bare / taken}
            for what, taken in seconds.items()
        ]
        report(f"{args.config}, batch {args.batch}", rows, vars(args), args.json)


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


def seconds_of_epoch(args: argparse.Namespace, root: Path, folder: Path) -> float:
    hook = StepTimes(skip=3)
    build_runner(args, root, folder, hook).train()
    return hook.seconds_per_step


def compare_with_bare_loop(args: argparse.Namespace, root: Path, folder: Path) -> tuple[float, float]:
    """Seconds a step of a bare loop and of the Runner, the same model on the same batch, in turns."""
    hook = StepTimes(skip=3)
    runner = build_runner(args, root, folder, hook)
    runner.build_for_training()
    runner.call_hook("before_train")
    runner.call_hook("before_train_epoch")
    batch = next(iter(runner.train_dataloader))
    steps = min(len(runner.train_dataloader), 40)
    bare, run = [], []
    for _ in range(args.rounds):
        bare.append(bare_loop(runner, batch, steps))
        hook.ends.clear()
        run.append(runner_loop(runner, batch, steps, hook))
    return statistics.median(bare), statistics.median(run)


def bare_loop(runner: Runner, batch: dict, steps: int) -> float:
    model, wrapper = runner.model.train(), runner.optim_wrapper
    optimizer = wrapper.optimizer
    ends = []
    for step in range(steps):
        data = model.data_preprocessor(batch, training=True)
        with torch.autocast(get_device(), torch.bfloat16, enabled=hasattr(wrapper, "dtype")):
            loss = model(data["inputs"], data["labels"], mode="loss")["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (3, steps - 1):
            synchronize()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[3]) / (steps - 4)


def runner_loop(runner: Runner, batch: dict, steps: int, hook: StepTimes) -> float:
    for step in range(steps):
        runner.train_loop.run_iter(step, batch)
    synchronize()
    hook.ends[-1] = time.perf_counter()
    return hook.seconds_per_step


if __name__ == "__main__":
    main()

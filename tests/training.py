"""Short trainings for tests: configs/debug.py with augmentation, in this process or in several processes."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from crate_mm.checkpoints import newest_checkpoint
from crate_mm.datasets import Digits
from crate_mm.engine import Runner, load_config, read_checkpoint
from crate_mm.registry import DATASETS
from tests.conftest import by_pytorch, free_port

AUGMENT = [dict(type="RandomRotation", degrees=15)]


@DATASETS.register_module()
class FewDigits(Digits):
    """Subset of the digits: 320 for training (ten batches of 32) and 100 for testing."""

    def __init__(self, split: str = "train", train: int = 320) -> None:
        super().__init__(split)
        self.numbers = self.numbers[: {"train": train, "test": 100}[split]]


def debug_config(**overrides):
    """Return configs/debug.py with a quarter of the data and of the batch size; ``__`` in a key stands for a dot.

    TensorBoard is off, because it takes a tenth of the time.
    """
    options = {"global_batch_size": 32, "visualizer.vis_backends": [dict(type="LocalVisBackend")]}
    options |= {key.replace("__", "."): value for key, value in overrides.items()}
    cfg = load_config("debug", options)
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.source.type = "FewDigits"
    return cfg


def run(work_dir: Path, resume: bool | Path = False, launcher: str = "none", **overrides) -> Runner:
    """Train ``debug_config`` with augmentation; resume from a file, or from the newest epoch in the work directory."""
    cfg = debug_config(**overrides)
    cfg.train_dataloader.dataset.transforms = AUGMENT
    cfg.work_dir, cfg.launcher = str(work_dir), launcher
    if resume:
        file = resume if isinstance(resume, Path) else max(work_dir.glob("epoch_*.pth"))
        cfg.resume, cfg.load_from = True, str(file)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def train(work_dir: Path, **options) -> dict:
    """Train like ``run``; return the contents of the last checkpoint."""
    return read_checkpoint(work_dir / f"epoch_{run(work_dir, **options).max_epochs}.pth")


def assert_identical(a, b, path=""):
    """Assert that two nested structures are equal, including every bit of the tensors."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_identical(x, y, f"{path}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


STATES = ("state_dict", "optimizer", "param_schedulers", "ema_state_dict")


def assert_same_states(a: dict | Path, b: dict | Path) -> None:
    """Assert that two checkpoints, or checkpoint files, have bit-identical weights and states."""
    a, b = (read_checkpoint(each) if isinstance(each, Path) else each for each in (a, b))
    for key in STATES:
        assert_identical(a.get(key), b.get(key), key)


# For comparisons: the first steps of Lion and Adam depend on the gradients' signs, which rounding can flip.
SGD = dict(optim_wrapper__optimizer__type="SGD", optim_wrapper__optimizer__lr=0.05, train_cfg__max_epochs=1)


def _rank(rank: int, world_size: int, port: int, train: Callable, work_dir: Path, options: dict) -> None:
    os.environ.update(by_pytorch(rank, world_size, port))
    train(work_dir, launcher="pytorch", **options)


def train_on_processes(world_size: int, work_dir: Path, train: Callable | None = None, **options) -> dict:
    """Train by ``run``, or by ``train`` with the arguments of ``run``; return the contents of the newest checkpoint."""
    train, options = (run, {**SGD, **options}) if train is None else (train, options)
    port = free_port()
    context = torch.multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(r, world_size, port, train, work_dir, options)) for r in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()  # no effect on a finished process
        process.join()
        assert process.exitcode == 0
    return read_checkpoint(newest_checkpoint(work_dir))


def _answer(rank: int, world_size: int, port: int, act: Callable, results) -> None:
    os.environ.update(by_pytorch(rank, world_size, port))
    torch.distributed.init_process_group("gloo")
    results.put((rank, act(rank)))
    time.sleep(0.5)  # the queue writes in a thread


def on_processes(world_size: int, act: Callable, answers: int | None = None) -> dict:
    """Return ``act(rank)`` by rank from ``world_size`` processes, or from the first ``answers`` of them to finish."""
    context, port = torch.multiprocessing.get_context("fork"), free_port()
    results = context.Queue()
    processes = [
        context.Process(target=_answer, args=(rank, world_size, port, act, results)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        return dict(results.get(timeout=60) for _ in range(answers or world_size))
    finally:
        for process in processes:
            process.kill()
            process.join()


def break_gradients(runner: Runner, at: set[int]) -> None:
    """Make gradients of the head NaN at the iterations ``at``, counted from 1."""
    runner.model.head.fc.weight.register_hook(lambda g: g * float("nan") if runner.iter + 1 in at else g)


def debug_runner(work_dir: Path, **overrides) -> Runner:
    cfg = debug_config(**overrides)
    cfg.work_dir = str(work_dir)
    return Runner.from_cfg(cfg)


FP16 = dict(optim_wrapper__type="AmpOptimWrapper", optim_wrapper__dtype="float16")


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def log_of(folder: Path) -> str:
    """Return the logs of all launches, oldest first, as one text."""
    return "".join(log.read_text() for log in sorted(folder.glob("*/*.log")))


def scalars_of(folder: Path) -> list[dict]:
    """Return the entries of the scalar logs of all launches, oldest first."""
    return [json.loads(line) for log in sorted(folder.glob("*/vis_data/scalars.json")) for line in log.open()]

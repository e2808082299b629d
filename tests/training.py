"""Short trainings that tests compare: configs/debug.py with augmentation, in this process or in several."""

from pathlib import Path

import torch

from crate_mm.engine import Runner, load_config, read_checkpoint

AUGMENT = [dict(type="RandomAffine", degrees=15, translate=(0.1, 0.1)), dict(type="RandomHorizontalFlip")]


def train(work_dir: Path, resume: bool = False, launcher: str = "none", **overrides) -> dict:
    """Train configs/debug.py with augmentation; return its last checkpoint."""
    cfg = load_config("debug", {key.replace("__", "."): value for key, value in overrides.items()})
    cfg.train_dataloader.dataset.transforms = AUGMENT
    cfg.work_dir, cfg.launcher = str(work_dir), launcher
    if resume:
        cfg.resume, cfg.load_from = True, str(sorted(work_dir.glob("epoch_*.pth"))[-1])
    runner = Runner.from_cfg(cfg)
    runner.train()
    return read_checkpoint(work_dir / f"epoch_{runner.max_epochs}.pth")


def assert_identical(a, b, path=""):
    """Two nested structures of data are equal, tensors bit for bit."""
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


# Lion's and Adam's first steps are signs, which rounding flips; SGD's steps are as close as the gradients are.
SGD = dict(optim_wrapper__optimizer__type="SGD", optim_wrapper__optimizer__lr=0.05, train_cfg__max_epochs=1)


def _rank(rank: int, world_size: int, port: int, work_dir: Path, options: dict) -> None:
    import os

    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    train(work_dir, launcher="pytorch", **SGD, **options)


def train_on_processes(world_size: int, work_dir: Path, **options) -> dict:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(r, world_size, port, work_dir, options)) for r in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()  # nothing, to one that has ended
        process.join()
        assert process.exitcode == 0
    return read_checkpoint(work_dir / "epoch_1.pth")

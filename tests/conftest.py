"""What the tests share: one thread (other processes may hold the second core), small data, and running the tools."""

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import mmengine.runner  # noqa: F401  loaded here, so that the tools, which are forked off, find it loaded
import numpy as np
import pytest
import sklearn.datasets  # noqa: F401
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


def hides_gpu(markers: str) -> bool:
    """Whether the tests that pytest's -m chooses run without a GPU: all but those that are asked for as ``gpu``."""
    return "gpu" not in markers or "not gpu" in markers


def pytest_configure(config: pytest.Config) -> None:
    hidden = hides_gpu(config.getoption("markexpr", ""))
    # The tools are forked off, which a process that uses CUDA does not survive.
    hidden and os.environ.update(CUDA_VISIBLE_DEVICES="")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU is visible: run with -m gpu on a machine that has one"))


class Finished(NamedTuple):
    """A tool that has run: exit code, and standard output and error together."""

    code: int
    output: str

    @property
    def last_line(self) -> str:
        return self.output.strip().splitlines()[-1] if self.output.strip() else ""


def _run(script: Path, args: list[str], log: Path, cwd: Path, env: dict[str, str]) -> None:
    file = open(log, "w", buffering=1)  # noqa: SIM115  open until the process ends
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv = [str(script), *args]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


@pytest.fixture
def run_tool(tmp_path):
    """Run ``tools/<name>.py`` with arguments in a process of its own, forked so that PyTorch need not load again."""

    def run(name: str, *args, cwd: Path = ROOT, timeout: float = 120, **env: str) -> Finished:
        log = tmp_path / f"{name.replace('/', '_')}-{len(list(tmp_path.glob('*.out')))}.out"
        script = ROOT / "tools" / f"{name}.py"
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(script, [str(a) for a in args], log, cwd, env)
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{name} {args} ran longer than {timeout} s:\n{log.read_text()}")
        return Finished(process.exitcode, log.read_text())

    return run


@pytest.fixture
def in_fork():
    """Call a function in a forked process: an export starts threads of autograd, which no fork survives."""

    def call(function, *args) -> None:
        process = multiprocessing.get_context("fork").Process(target=function, args=args)
        process.start()
        process.join(120)
        process.kill()
        assert process.exitcode == 0

    return call


@pytest.fixture
def run_processes(tmp_path):
    """Run ``tools/<name>.py --launcher pytorch`` in two forked processes that train together, without the launcher.

    Returns the exit code of the first of them that failed, and all that they said.
    """

    def run(name: str, *args, timeout: float = 120, **env: str) -> Finished:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fork, script = multiprocessing.get_context("fork"), ROOT / "tools" / f"{name}.py"
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
        shared |= {"TORCHELASTIC_RESTART_COUNT": "0", **env}
        logs, processes = [tmp_path / f"{port}-{rank}.out" for rank in range(2)], []
        for rank, log in enumerate(logs):
            mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = [*map(str, args), "--launcher", "pytorch"]
            processes.append(fork.Process(target=_run, args=(script, arguments, log, ROOT, mine)))
            processes[-1].start()
        for process in processes:
            process.join(timeout)
        hung = [process for process in processes if process.is_alive()]
        for process in hung:
            process.kill()
        said = "".join(log.read_text() for log in logs)
        assert not hung, said
        return Finished(next((p.exitcode for p in processes if p.exitcode), 0), said)

    return run


@pytest.fixture(scope="session")
def debug_checkpoint(tmp_path_factory) -> Path:
    """An epoch of configs/debug.py, trained by the Runner."""
    from crate_mm.engine import Runner, load_config

    work_dir = tmp_path_factory.mktemp("debug")
    cfg = load_config("debug", {"train_cfg.max_epochs": 1})
    cfg.work_dir = str(work_dir)
    Runner.from_cfg(cfg).train()
    return work_dir / "epoch_1.pth"


def make_image_tree(
    root: Path, classes: int = 3, train: int = 4, val: int = 2, size: tuple[int, int] = (40, 30)
) -> Path:
    """Write random JPEGs in ImageNet's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c in range(classes):
            folder = root / split / f"n{c:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{folder.name}_{i}.JPEG")
    return root


@pytest.fixture
def image_tree(tmp_path) -> Path:
    """A tree of 12 training and 6 validation images in 3 classes."""
    return make_image_tree(tmp_path / "imagenet")


@pytest.fixture
def in_copy(tmp_path):
    """Copy a file into a fresh folder, so that a test may damage it."""

    def copy(path: Path, name: str | None = None) -> Path:
        target = tmp_path / (name or path.name)
        shutil.copy(path, target)
        return target

    return copy

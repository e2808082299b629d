"""Shared by all tests: one thread per process, small data, and fixtures that run the tools."""

import ast
import gc
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # otherwise the compiler starts processes that each load PyTorch

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Modules of the tools that take seconds to load. The tools run in forked processes, which inherit loaded modules.
LOADED = [f"crate_mm.cli.{file.stem}" for file in sorted((ROOT / "crate_mm" / "cli").glob("*.py"))]
LOADED += ["matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "sklearn.decomposition"]
LOADED += ["sklearn.datasets", "sklearn.manifold", "sklearn.model_selection"]
LOADED += ["torch.distributed.run", "torch.utils.tensorboard"]


def hides_gpu(markers: str) -> bool:
    """Return whether to hide the GPU, because pytest's -m does not select tests marked ``gpu``."""
    return "gpu" not in markers or "not gpu" in markers


def unformatted(text: str, **style) -> tuple[str, bool]:
    """Stand in for yapf's FormatCode without formatting; raise ``SyntaxError`` for invalid Python, too."""
    ast.parse(text)
    return text, True


def counted_once(count: Callable) -> Callable:
    """Cache the multiply-adds of models with the same modules and shapes."""
    counts = {}

    def cached(model, example):
        inputs = {**dict(model.named_parameters()), **example}
        key = f"{model}{[(name, getattr(value, 'shape', value)) for name, value in inputs.items()]}"
        return counts[key] if key in counts else counts.setdefault(key, count(model, example))

    return cached


def pytest_configure(config: pytest.Config) -> None:
    hidden = hides_gpu(config.getoption("markexpr", ""))
    # The tools run in forked processes, and CUDA does not work after a fork.
    hidden and os.environ.update(CUDA_VISIBLE_DEVICES="")
    if config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # the controller of pytest-xdist runs no tests
    gc.disable()  # until all tests are collected: each pass would visit all loaded modules
    for name in LOADED:
        import_module(name)
    import mmengine.config.config
    import sklearn.datasets
    import torch

    # Formatting a config and reading the digits' file would take a third of the time of a short training.
    mmengine.config.config.FormatCode = unformatted
    sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)
    # The commit and the multiply-adds of a model would take as long: cache them.
    from crate_mm.engine.checkpointing import results

    results.code_commit()
    results.count_complexity = counted_once(results.count_complexity)
    # Test files need not survive a power failure: a training would wait for the disk 18 times.
    os.fsync = lambda _file: None
    torch.set_num_threads(1)
    # At the first gradient, PyTorch starts threads for all devices, including the devices of fake tensors if the
    # compiler has created some. A process that is forked after these threads exist cannot compute gradients.
    torch.ones(1, requires_grad=True).backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    # Slow tests come first, so that the workers of pytest-xdist finish at about the same time.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU is visible: run with -m gpu on a machine with a GPU"))


def pytest_collection_finish() -> None:
    # Otherwise the garbage collector would visit all loaded modules, in each forked process, too.
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _sys_path_as_before(monkeypatch):
    """Restore ``sys.path``: configs add their folders, and the next test must not import files from these folders."""
    monkeypatch.setattr(sys, "path", [*sys.path])


class Finished(NamedTuple):
    """Exit code of a tool, and its standard output and standard error together."""

    code: int
    output: str

    @property
    def last_line(self) -> str:
        return self.output.strip().splitlines()[-1] if self.output.strip() else ""


def _run(script: Path, args: list[str], log: Path, cwd: Path, env: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores SIGINT in background jobs
    file = open(log, "a", buffering=1)  # noqa: SIM115  open until the process ends
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv = [str(script), *args]
    sys.path[0] = str(script.parent)
    if script.name == "torchrun.py":
        from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

        SubprocessHandler._popen = lambda self, command, env: ForkedWorker(command, env)
        # Each rendezvous record searches all loaded modules for its caller, which takes half a second.
        rendezvous = import_module("torch.distributed.elastic.rendezvous.dynamic_rendezvous")
        rendezvous.construct_and_record_rdzv_event, rendezvous.get_method_name = (lambda **event: None), str
    runpy.run_path(str(script), run_name="__main__")


class ForkedWorker:
    """Stand-in for torchrun's ``subprocess.Popen``: forks the launcher, so that PyTorch is not loaded again."""

    def __init__(self, command: tuple[str, ...], env: dict[str, str]) -> None:
        script = Path(command[command.index("-u") + 1])
        self.process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(script, command[command.index(str(script)) + 1 :], env)
        )
        self.process.start()
        self.pid, self.wait = self.process.pid, self.process.join

    @staticmethod
    def _run(script: Path, args: tuple[str, ...], env: dict[str, str]) -> None:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [str(script), *args]
        sys.path[:1] = [str(script.parent), *filter(None, env.get("PYTHONPATH", "").split(":"))]
        runpy.run_path(str(script), run_name="__main__")

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)


def start(script: Path, args: tuple, log: Path, cwd: Path, env: dict[str, str]) -> multiprocessing.Process:
    """Start a tool in a forked process; torchrun's workers are forked from that process."""
    arguments = (script, [str(a) for a in args], log, cwd, env)
    process = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
    process.start()
    return process


@pytest.fixture
def recorded(tmp_path):
    """Run a shell script with a Python that records its arguments and environment, on a machine without GPUs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nnotes = [sys.argv[1:], dict(os.environ)]\n"
        "sys.exit(print(0)) if sys.argv[1] == '-c' else json.dump(notes, open(os.environ['NOTES'], 'w'))\n"
    )
    (tmp_path / "bin" / "python").chmod(0o755)

    def run(script: str, *args: str, **env: str) -> tuple[list[str], dict[str, str]]:
        env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"), **env}
        command = ["bash", str(ROOT / "tools" / script), *args]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "notes").read_text())

    return run


@pytest.fixture
def run_tool(tmp_path):
    """Run ``tools/<name>.py`` with arguments in a forked process, so that PyTorch is not loaded again."""

    def run(name: str, *args, cwd: Path = ROOT, timeout: float = 120, **env: str) -> Finished:
        log = tmp_path / f"{name.replace('/', '_')}-{len(list(tmp_path.glob('*.out')))}.out"
        process = start(ROOT / "tools" / f"{name}.py", args, log, cwd, env)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{name} {args} ran longer than {timeout} s:\n{log.read_text()}")
        return Finished(process.exitcode, log.read_text())

    return run


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def by_pytorch(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return the environment variables that PyTorch's launcher sets for a process."""
    shared = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    mine = {**shared, "RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RESTART_COUNT": 0}
    return {name: str(value) for name, value in mine.items()}


@pytest.fixture
def run_processes(tmp_path):
    """Run ``tools/<name>.py --launcher pytorch`` as a distributed job in forked processes, without the launcher.

    Returns the exit code of the first rank that failed, or 0, and the output of all processes in order of time.
    With ``ends_others``, the end of one process terminates all others, as with the launcher.
    """

    def run(
        name: str,
        *args,
        processes: int = 2,
        ends_others: bool = False,
        launcher: str = "pytorch",
        variables: Callable[[int, int, int], dict[str, str]] = by_pytorch,
        timeout: float = 120,
        **env: str,
    ) -> Finished:
        port = free_port()
        log, script = tmp_path / f"{port}.out", ROOT / "tools" / f"{name}.py"
        started = [
            start(script, (*args, "--launcher", launcher), log, ROOT, {**variables(rank, processes, port), **env})
            for rank in range(processes)
        ]
        if ends_others:
            ended = connection.wait([process.sentinel for process in started], timeout)
            started.sort(key=lambda process: process.sentinel not in ended)
            for process in started:
                process.terminate()
        for process in started:
            process.join(timeout)
        hung = [process for process in started if process.is_alive()]
        for process in hung:
            process.kill()
        assert not hung, log.read_text()
        return Finished(next((p.exitcode for p in started if p.exitcode), 0), log.read_text())

    return run


def forget_hub_library() -> dict:
    """Remove huggingface_hub and modules that use it from ``sys.modules``: a new import reads the environment again."""
    own = ("crate_mm.hub", "crate_mm.extras.interop.model_card")
    names = [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub" or name in own]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Start a server with the Hub's protocol, direct huggingface_hub to this server, and set an empty cache."""
    from tests.hub_server import HubServer

    before = forget_hub_library()
    with HubServer() as server:
        for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")  # the library requires a token to write
        yield server
    monkeypatch.undo()
    forget_hub_library()
    sys.modules.update(before)


@pytest.fixture(scope="session")
def debug_checkpoint(tmp_path_factory) -> Path:
    """Checkpoint after one epoch of configs/debug.py."""
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
    """Copy a file to the test's temporary folder, so that the test can damage the copy."""

    def copy(path: Path, name: str | None = None) -> Path:
        target = tmp_path / (name or path.name)
        shutil.copy(path, target)
        return target

    return copy

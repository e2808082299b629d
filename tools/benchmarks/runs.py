"""What faults.py kills: a run of training, started by its command or forked off."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from crate_mm.cli.train import main as train

TOOLS = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
            for child in children.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


class Started:
    """By the command line, with the launcher where several processes train together.

    Args:
        arguments: of ``tools/train.py``, the config first.
        processes: how many train together.
        log: the file at whose end the output goes.
    """

    def __init__(self, arguments: list[str], processes: int, log: Path) -> None:
        config, *rest = arguments
        start = ["bash", str(TOOLS / "dist_train.sh"), config, str(processes)]
        if processes == 1:
            start = [sys.executable, str(TOOLS / "train.py"), config]
        with open(log, "a") as file:
            self.process = subprocess.Popen(
                [*start, *rest], stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT}, start_new_session=True
            )

    def code(self) -> int | None:
        """The exit code of the run; None while it goes on."""
        return self.process.poll()

    def wait(self, seconds: float | None = None) -> int:
        """Wait for its end, and return its exit code; raise ``subprocess.TimeoutExpired`` if that takes longer."""
        return self.process.wait(seconds)

    def heads(self) -> list[int]:
        """The processes that a signal to the run goes to: the launcher, or the one that trains."""
        return [self.process.pid]

    def ranks(self) -> list[int]:
        """The processes that train together, without the launcher and the loaders' workers."""
        return [pid for pid in descendants(self.process.pid) if _is_rank(pid)]


class Forked:
    """In processes forked off this one, which has loaded all that they need: without the launcher, and much sooner.

    When one of the processes ends, the others find that out by themselves. The arguments are those of ``Started``.
    """

    def __init__(self, arguments: list[str], processes: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        if processes > 1:
            arguments = [arguments[0], "--launcher", "pytorch", *arguments[1:]]
        self.processes = [
            multiprocessing.get_context("fork").Process(
                target=_train, args=(arguments, log, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            )
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    def code(self) -> int | None:
        """As that of ``Started``; of several processes, the first one's that failed."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def wait(self, seconds: float | None = None) -> int:
        """As that of ``Started``."""
        end = None if seconds is None else time.monotonic() + seconds
        for process in self.processes:
            process.join(end and max(end - time.monotonic(), 0))
        if self.code() is None:
            raise subprocess.TimeoutExpired("the run", seconds)
        return self.code()

    def heads(self) -> list[int]:
        return [process.pid for process in self.processes]

    ranks = heads


def _train(arguments: list[str], log: Path, variables: dict[str, str]) -> None:
    os.setsid()
    file = open(log, "a", buffering=1)  # noqa: SIM115  open until the process ends
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    os.environ.update(variables)
    sys.argv = [str(TOOLS / "train.py"), *arguments]
    train()


def _is_rank(pid: int) -> bool:
    parent = Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0]
    return b"LOCAL_RANK=" in _environment(pid) and b"LOCAL_RANK=" not in _environment(parent)


def _environment(pid: int | str) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()

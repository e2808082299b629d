"""Training runs for faults.py, started by their command or forked."""

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
    """Return the ids of all child processes of a process, recursively."""
    pids = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(ProcessLookupError, FileNotFoundError):  # the process has ended in the meantime
            for child in children.read_text().split():
                pids += [int(child), *descendants(int(child))]
    return pids


class Started:
    """A run started by its command line, with the launcher if there are several processes.

    Args:
        arguments: arguments of ``tools/train.py``, the config first.
        processes: number of processes.
        log: file to which the output is appended.
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
        """Return the exit code of the run, or None while it is running."""
        return self.process.poll()

    def wait(self, seconds: float | None = None) -> int:
        """Wait for the run to end and return its exit code; raise ``subprocess.TimeoutExpired`` after ``seconds``."""
        return self.process.wait(seconds)

    def heads(self) -> list[int]:
        """Return the processes that receive a signal to the run: the launcher, or the single training process."""
        return [self.process.pid]

    def ranks(self) -> list[int]:
        """Return the training processes, without the launcher and the loaders' workers."""
        return [pid for pid in descendants(self.process.pid) if _is_rank(pid)]


class Forked:
    """A run in processes forked from this one; it starts faster, without imports and without the launcher.

    If one of the processes ends, the other processes detect it themselves. The arguments are those of ``Started``.
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
        """As in ``Started``; with several processes, the exit code of the first that failed."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def wait(self, seconds: float | None = None) -> int:
        """As in ``Started``."""
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

"""Nodes that leave and join a training (NNODES=MIN:MAX): two launchers on this machine.

They are tools/torchrun.py as tools/dist_train.sh starts it, forked off this process, and so are their workers.
"""

import json
import os
import signal
import socket
import time
from collections import defaultdict
from contextlib import suppress
from multiprocessing import Process
from pathlib import Path

import pytest
import torch

from crate_mm.checkpoints.files import training_checkpoints
from crate_mm.engine import read_checkpoint
from crate_mm.engine.safety.signals import EXIT_PREEMPTED
from tests.conftest import ROOT, free_port, start
from tests.training import AUGMENT, SGD, debug_runner, train

# Notes each step of each process: the number of processes, the launcher, the sum of the process's images. A step lasts
# while there is a file called hold, or until the process is asked to stop.
HOOK = """
import json, os, time
import tests.training  # its data
from mmengine.hooks import Hook
from crate_mm.registry import HOOKS

@HOOKS.register_module()
class Notes(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        note = dict(step=runner.iter, world=runner.world_size, rank=runner.rank, pid=os.getpid(), node=os.getppid())
        note["meeting"] = os.environ["MASTER_PORT"]  # another one at each start of the processes
        note["images"] = sum(int(image.long().sum()) for image in data_batch["inputs"])
        with open(os.environ["NOTES"], "a") as file:
            file.write(json.dumps(note) + "\\n")
        time.sleep(0.1)
        end = time.monotonic() + 150
        while os.path.exists(os.environ["NOTES"] + ".hold") and not runner.train_loop.signals.received:
            assert time.monotonic() < end
            time.sleep(0.05)
"""
CONFIG = """
_base_ = "{root}/configs/debug.py"
custom_imports = dict(imports=["notes"])
global_batch_size = 32
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.05))
train_cfg = dict(max_epochs=4)
default_hooks = dict(notes=dict(type="Notes"))
train_dataloader = dict(dataset=dict(source=dict(type="FewDigits"), transforms={augment}))
val_dataloader = test_dataloader = dict(dataset=dict(source=dict(type="FewDigits")))
"""
STEPS = 40


def notes_of(folder: Path) -> list[dict]:
    file = folder / "steps"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Job:
    """A training whose nodes are launchers on this machine."""

    def __init__(self, folder: Path, recorded) -> None:
        self.folder, self.port, self.recorded = folder, free_port(), recorded
        (folder / "notes.py").write_text(HOOK)
        (folder / "config.py").write_text(CONFIG.format(root=ROOT, augment=AUGMENT))
        self.nodes: dict[str, Process] = {}

    def start(self, name: str, nodes: str = "1:2", **env: str) -> Process:
        env |= dict(NNODES=nodes, MASTER_ADDR="localhost", PORT=str(self.port), PYTHONPATH=str(self.folder))
        # Torchrun's own settings, here to wait less.
        env |= dict(PET_RDZV_CONF="last_call_timeout=2,join_timeout=60,keep_alive_interval=2,keep_alive_max_attempt=4")
        (_, *arguments), env = self.recorded("dist_train.sh", "config.py", "1", "--work-dir", "run", "--resume", **env)
        env["NOTES"] = str(self.folder / "steps")
        log = self.folder / f"{name}.log"
        self.nodes[name] = start(ROOT / "tools" / "torchrun.py", arguments, log, self.folder, env)
        return self.nodes[name]

    def start_where_all_meet(self, name: str, **env: str) -> Process:
        """Start the first node, which is the one to meet at because it listens first."""
        node = self.start(name, **env)
        until(lambda: socket.socket().connect_ex(("localhost", self.port)) == 0, self)
        return node

    def hold(self) -> None:
        """Let no process get beyond its step."""
        (self.folder / "steps.hold").touch()

    def notes(self) -> list[dict]:
        return notes_of(self.folder)

    def steps(self, world: int, after: int = 0) -> int:
        """The number of steps that so many processes have taken, of those after the first notes."""
        return len({note["step"] for note in self.notes()[after:] if note["world"] == world})

    def lose(self, name: str) -> None:
        """What a power cut is to a node: its launcher and processes are gone, and none of them can do a thing."""
        node = self.nodes[name]
        os.kill(node.pid, signal.SIGSTOP)  # it must not see its processes end
        for pid in {note["pid"] for note in self.notes() if note["node"] == node.pid}:
            with suppress(ProcessLookupError):  # one of an earlier start
                os.kill(pid, signal.SIGKILL)
        node.kill()
        node.join()

    def said(self) -> str:
        return "\n".join(f"=== {name}\n{(self.folder / f'{name}.log').read_text()}" for name in self.nodes)

    def end(self) -> dict[str, int]:
        """Wait for the nodes; return their exit codes."""
        for node in self.nodes.values():
            node.join(150)
        return {name: node.exitcode for name, node in self.nodes.items()}


def until(condition, job: Job, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, job.said()
        assert any(node.is_alive() for node in job.nodes.values()), job.said()
        time.sleep(0.1)


@pytest.fixture
def job(tmp_path, recorded):
    job = Job(tmp_path, recorded)
    yield job
    for name, node in job.nodes.items():
        if node.is_alive():
            job.lose(name)


def images(notes: list[dict]) -> dict[int, set[int]]:
    """For each step the sum over the images of its batch, for each time that processes took it together."""
    taken: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for note in notes:
        taken[note["meeting"], note["step"]].append(note)
    sums: dict[int, set[int]] = defaultdict(set)
    for (_, step), parts in taken.items():
        if len(parts) == parts[0]["world"]:  # not one that a lost process has not come to
            sums[step].add(sum(part["images"] for part in parts))
    return sums


def assert_as_if_undisturbed(job: Job, folder: Path) -> None:
    """The same batches, and weights that differ by what the order of sums makes."""
    assert {step: len(sums) for step, sums in images(job.notes()).items()} == dict.fromkeys(range(STEPS), 1)
    options = {**SGD, "train_cfg__max_epochs": 4}
    expected = train(folder / "undisturbed", **options)
    found = read_checkpoint(job.folder / "run" / "epoch_4.pth")
    assert found["meta"]["iter"] == expected["meta"]["iter"] == STEPS
    start = debug_runner(folder / "start").model.state_dict()
    for key, value in expected["state_dict"].items():
        moved = (value - start[key]).abs().max()
        assert (value - found["state_dict"][key]).abs().max() <= 1e-3 * moved + 1e-7, key


@pytest.mark.slow
def test_a_node_is_lost_and_replaced(job, tmp_path):
    job.start_where_all_meet("first")
    job.start("second")
    until(lambda: job.steps(world=2) > 12, job)
    job.lose("second")
    before = len(job.notes())  # the first may have begun alone
    until(lambda: job.steps(world=1, after=before) > 2, job)
    job.hold()  # so that the third can join in time
    alone = [note["step"] for note in job.notes()[before:] if note["world"] == 1]
    assert min(alone) == 10  # from the newest checkpoint, that of the first epoch
    before = len(job.notes())
    job.start("third")
    until(lambda: job.steps(world=2, after=before) > 0, job)
    (job.folder / "steps.hold").unlink()
    assert {**job.end(), "second": 0} == dict(first=0, second=0, third=0), job.said()
    # Nothing was lost when the third came: the process that ran saved first, and no step was taken twice.
    last = [note for note in job.notes() if note["world"] == 1][-1]["step"]
    assert min(note["step"] for note in job.notes()[before:] if note["world"] == 2) == last + 1
    assert_as_if_undisturbed(job, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 7), reason="this PyTorch's torchrun ends the job with a node that leaves")
def test_a_node_that_is_asked_to_leave_saves_and_the_others_go_on(job):
    """Until the node is lost that all meet at."""
    job.start_where_all_meet("first", MAX_RESTARTS="1")
    job.start("second")
    until(lambda: job.steps(world=2) > 4, job)
    os.kill(job.nodes["second"].pid, signal.SIGUSR1)
    job.nodes["second"].join(100)
    assert job.nodes["second"].exitcode == EXIT_PREEMPTED, job.said()
    until(lambda: job.steps(world=1) > 1, job)
    job.hold()
    together, alone = ([note["step"] for note in job.notes() if note["world"] == world] for world in (2, 1))
    assert min(alone) == max(together) + 1  # nothing lost

    before = len(job.notes())
    job.start("third")
    until(lambda: job.steps(world=2, after=before) > 0, job)
    job.lose("first")
    (job.folder / "steps.hold").unlink()
    job.nodes["third"].join(100)
    assert job.nodes["third"].exitcode == 1, job.said()
    said = (job.folder / "third.log").read_text()
    assert "error: the rendezvous node MASTER_ADDR does not answer at PORT" in said
    assert "Traceback" not in said
    assert training_checkpoints(job.folder / "run")  # from which --resume goes on

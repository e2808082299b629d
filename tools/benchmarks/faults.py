"""Kill a training run again and again, resume it each time, and compare its end with that of a run left alone.

python tools/benchmarks/faults.py --kills 100
python tools/benchmarks/faults.py --kills 20 --processes 2 --json faults.json
python tools/benchmarks/faults.py --kills 20 --signal TERM
python tools/benchmarks/faults.py --kills 20 --damage
python tools/benchmarks/faults.py --kills 20 --processes 2 --fork

Each kill comes when the run has taken a random number of steps more; every second one waits for the next checkpoint
to be under way. A checkpoint is written every other step. Nothing but ``--resume`` is given to the run that follows.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
from machine import report
from runs import Forked, Started, descendants

from crate_mm.checkpoints.files import training_checkpoints, training_progress
from crate_mm.cli.options import one_sentence_errors, positive
from crate_mm.engine import read_checkpoint
from crate_mm.engine.safety.signals import PREEMPTED

STEPS_PER_EPOCH = 10  # of configs/debug.py
COMPARED = ("state_dict", "optimizer", "param_schedulers", "ema_state_dict")
DAMAGES = {
    "truncated": lambda data, place: data[:place],
    "a byte changed": lambda data, place: data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :],
    "emptied": lambda data, place: b"",
}


class Trial:
    """One run of training in a folder of its own, started as often as it takes.

    Args:
        folder: work folder.
        epochs: how long it trains.
        args: what the benchmark was asked for.
    """

    def __init__(self, folder: Path, epochs: int, args: argparse.Namespace) -> None:
        self.folder, self.processes = folder, args.processes
        self.kind = Forked if args.fork else Started
        options = [f"train_cfg.max_epochs={epochs}", "ema_momentum=0.1", "default_hooks.checkpoint.every_iters=2"]
        options += ["train_dataloader.num_workers=1", "train_dataloader.persistent_workers=True"]
        options += [f"train_dataloader.dataset.transforms={AUGMENTATION}"]
        self.arguments = ["debug", "--resume", "--work-dir", str(folder), "--cfg-options", *options]
        folder.mkdir()

    def start(self) -> Forked | Started:
        """Start it, or start it again, with its output at the end of a file beside its folder."""
        return self.kind(self.arguments, self.processes, self.log)

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def steps(self) -> int:
        """Steps that the newest checkpoint has taken."""
        newest = training_checkpoints(self.folder)[-1:]
        epoch, step = training_progress(newest[0]) if newest else (0, 0)
        return step or epoch * STEPS_PER_EPOCH

    def finish(self) -> None:
        """Let it train to the end.

        Raises:
            RuntimeError: it does not.
        """
        code = self.start().wait()
        if code:
            raise RuntimeError(f"a run left alone ended with code {code}; its output is in {self.log}")

    def result(self) -> dict:
        """The last checkpoint's states."""
        checkpoint = read_checkpoint(training_checkpoints(self.folder)[-1])
        return {key: checkpoint[key] for key in COMPARED}


AUGMENTATION = "[dict(type='RandomAffine',degrees=15,translate=(0.1,0.1)),dict(type='RandomHorizontalFlip')]"


def wait_for(run: Forked | Started, condition, what: str, seconds: float = 120) -> bool:
    """Wait until the condition holds (True) or the run has ended (False), looking as often as can be."""
    end = time.monotonic() + seconds
    while not condition():
        if run.code() is not None:
            return False
        if time.monotonic() > end:
            send(signal.SIGKILL, run.heads())
            raise RuntimeError(f"no {what} in {seconds:g} s")
    return True


def send(number: int, processes: list[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill(run: Forked | Started, number: int, rng: random.Random, processes: int) -> str:
    """Send the signal to the run, all of it or one of its processes; wait for its end; say what was hit."""
    if processes == 1 or rng.random() < 0.5:
        hit, victims = "the run", run.heads()
        if number == signal.SIGKILL:
            victims = [*victims, *(pid for head in victims for pid in descendants(head))]
    else:
        hit, victims = "one process", [rng.choice(run.ranks())]
    send(number, victims)
    start = time.monotonic()
    run.wait(90)
    if time.monotonic() - start > 60:
        raise RuntimeError("the other processes took more than a minute to end")
    return hit


def damage_newest(folder: Path, rng: random.Random) -> str | None:
    """Damage the newest checkpoint, if there is another; say how."""
    checkpoints = training_checkpoints(folder)
    if len(checkpoints) < 2:
        return None
    name = rng.choice(list(DAMAGES))
    data = checkpoints[-1].read_bytes()
    checkpoints[-1].write_bytes(DAMAGES[name](data, rng.randrange(len(data))))
    return name


def same(a, b) -> bool:
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def torment(trial: Trial, epochs: int, args: argparse.Namespace) -> Counter:
    """Kill the run as often as asked for, each time to be resumed by the next start; count what was hit and how."""
    rng, hits = random.Random(args.seed), Counter()
    number = getattr(signal, f"SIG{args.signal}")
    while hits["kills"] < args.kills:
        run, before = trial.start(), trial.steps()
        most = max((epochs * STEPS_PER_EPOCH - before) // (args.kills - hits["kills"] + 1), 1)
        target = before + rng.randint(0, most)
        alive = wait_for(run, lambda: trial.steps() > target, f"step {target}")  # noqa: B023
        in_write = hits["kills"] % 2 == 0
        if alive and in_write:
            alive = wait_for(run, lambda: any(trial.folder.glob("*.part")), "checkpoint")
        if alive:
            time.sleep(rng.uniform(0, 0.002 if in_write else 0.05))
        if not alive or run.code() is not None:
            raise RuntimeError(f"the run ended by itself with code {run.code()}; see {trial.log}")
        hits[f"hit {kill(run, number, rng, args.processes)}"] += 1
        hits["kills"] += 1
        hits["a write cut off"] += any(trial.folder.glob("*.part"))
        if number != signal.SIGKILL and run.code() != PREEMPTED and args.processes == 1:
            raise RuntimeError(f"ended with code {run.code()}, not {PREEMPTED}; see {trial.log}")
        damaged = damage_newest(trial.folder, rng) if args.damage else None
        if damaged:
            hits[damaged] += 1
    return hits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=positive, default=100)
    parser.add_argument("--processes", type=positive, default=1)
    parser.add_argument("--signal", choices=["KILL", "TERM", "USR1", "INT"], default="KILL")
    parser.add_argument("--damage", action="store_true", help="damage the newest checkpoint after each kill")
    parser.add_argument("--steps", type=positive, default=10, help="how many the run takes for each kill, on average")
    parser.add_argument("--fork", action="store_true", help="fork the processes off, without the launcher: much sooner")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures there")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors(show_traceback=True):
        epochs = max(-(-args.kills * args.steps // STEPS_PER_EPOCH), 3)
        folder = Path(tempfile.mkdtemp(prefix="faults-"))
        start = time.monotonic()
        alone = Trial(folder / "alone", epochs, args)
        alone.finish()
        killed = Trial(folder / "killed", epochs, args)
        hits = torment(killed, epochs, args)
        killed.finish()
        identical = same(alone.result(), killed.result())
        row = {
            "signal": args.signal,
            "processes": args.processes,
            "steps": epochs * STEPS_PER_EPOCH,
            **hits,
            "bit-identical": identical,
            "seconds": round(time.monotonic() - start, 1),
        }
        report("A run killed and resumed, against one left alone", [row], vars(args), args.json)
        if not identical:
            raise RuntimeError(f"the run that was killed ended elsewhere: both are in {folder}")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

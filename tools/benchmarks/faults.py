"""Kill a training run repeatedly, resume it each time, and compare its result with an undisturbed run.

python tools/benchmarks/faults.py --kills 100
python tools/benchmarks/faults.py --kills 20 --processes 2 --json faults.json
python tools/benchmarks/faults.py --kills 20 --signal TERM
python tools/benchmarks/faults.py --kills 20 --damage
python tools/benchmarks/faults.py --kills 20 --processes 2 --fork

Each kill comes after a random number of further steps. Every second kill waits until a checkpoint is being written. A
checkpoint is written every other step. All starts have the same arguments, including ``--resume``.
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
from crate_mm.cli.options import positive_int, user_errors
from crate_mm.engine import read_checkpoint
from crate_mm.engine.safety.signals import EXIT_PREEMPTED

STEPS_PER_EPOCH = 10  # of configs/debug.py
COMPARED = ("state_dict", "optimizer", "param_schedulers", "ema_state_dict")
DAMAGES = {
    "truncated": lambda data, place: data[:place],
    "a byte changed": lambda data, place: data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :],
    "emptied": lambda data, place: b"",
}


class Trial:
    """One training run in its own work directory, started as often as necessary.

    Args:
        folder: work directory.
        epochs: length of the run.
        args: arguments of the benchmark.
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
        """Start or resume the run; its output is appended to a file beside its work directory."""
        return self.kind(self.arguments, self.processes, self.log)

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def steps(self) -> int:
        """Return the number of steps of the newest checkpoint."""
        newest = training_checkpoints(self.folder)[-1:]
        epoch, step = training_progress(newest[0]) if newest else (0, 0)
        return step or epoch * STEPS_PER_EPOCH

    def finish(self) -> None:
        """Train to the end.

        Raises:
            RuntimeError: the run fails.
        """
        code = self.start().wait()
        if code:
            raise RuntimeError(f"an undisturbed run ended with code {code}; its output is in {self.log}")

    def result(self) -> dict:
        """Return the states in the last checkpoint."""
        checkpoint = read_checkpoint(training_checkpoints(self.folder)[-1])
        return {key: checkpoint[key] for key in COMPARED}


AUGMENTATION = "[dict(type='RandomAffine',degrees=15,translate=(0.1,0.1)),dict(type='RandomHorizontalFlip')]"


def wait_for(run: Forked | Started, condition, what: str, seconds: float = 120) -> bool:
    """Poll until the condition holds (return True) or the run has ended (return False)."""
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
    """Send the signal to all or one of the run's processes; wait for the run to end; return what was hit."""
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
    """Damage the newest checkpoint if there is an older one; return the kind of damage."""
    checkpoints = training_checkpoints(folder)
    if len(checkpoints) < 2:
        return None
    name = rng.choice(list(DAMAGES))
    data = checkpoints[-1].read_bytes()
    checkpoints[-1].write_bytes(DAMAGES[name](data, rng.randrange(len(data))))
    return name


def same(a, b) -> bool:
    """Return whether two nested structures are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def torment(trial: Trial, epochs: int, args: argparse.Namespace) -> Counter:
    """Kill the run ``args.kills`` times, resume it each time, and count the kinds of hits."""
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
            raise RuntimeError(f"the run ended on its own with code {run.code()}; see {trial.log}")
        hits[f"hit {kill(run, number, rng, args.processes)}"] += 1
        hits["kills"] += 1
        hits["a write cut off"] += any(trial.folder.glob("*.part"))
        if number != signal.SIGKILL and run.code() != EXIT_PREEMPTED and args.processes == 1:
            raise RuntimeError(f"ended with code {run.code()}, not {EXIT_PREEMPTED}; see {trial.log}")
        damaged = damage_newest(trial.folder, rng) if args.damage else None
        if damaged:
            hits[damaged] += 1
    return hits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=positive_int, default=100)
    parser.add_argument("--processes", type=positive_int, default=1)
    parser.add_argument("--signal", choices=["KILL", "TERM", "USR1", "INT"], default="KILL")
    parser.add_argument("--damage", action="store_true", help="damage the newest checkpoint after each kill")
    parser.add_argument(
        "--steps", type=positive_int, default=10, help="average number of steps between kills (default: 10)"
    )
    parser.add_argument("--fork", action="store_true", help="fork the processes instead of using the launcher; faster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the results here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors(show_traceback=True):
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
        report("A run killed and resumed, compared with an undisturbed one", [row], vars(args), args.json)
        if not identical:
            raise RuntimeError(f"the killed run has a different result; both runs are in {folder}")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

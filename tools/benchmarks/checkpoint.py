"""Measure the cost of a checkpoint: written, synced to disk, read back and verified, with the optimizer's state.

python tools/benchmarks/checkpoint.py --config crate_base_in1k --json checkpoint.json

The percentage is the fraction of training time spent waiting, with a checkpoint every ``--minutes``. Training waits
while the state is copied; with ``--wait``, also for the write, as with default_hooks.checkpoint.background=False.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from end_to_end import StepTimes, build_runner
from machine import report
from photographs import write_tree

from crate_mm.checkpoints.files import training_checkpoints
from crate_mm.cli.options import check_writable, positive_int, user_errors
from crate_mm.engine import CheckpointHook


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="crate_base_in1k", help="an ImageNet config (default: crate_base_in1k)")
    parser.add_argument(
        "--minutes", type=positive_int, default=10, help="interval of checkpoints, in minutes (default: 10)"
    )
    parser.add_argument("--rounds", type=positive_int, default=7, help="checkpoints to write (default: 7)")
    parser.add_argument("--wait", action="store_true", help="let training wait until a checkpoint is verified")
    parser.add_argument("--folder", help="output folder (default: the system's temporary directory)")
    parser.add_argument("--json", metavar="FILE", help="write the results here, as JSON")
    args = parser.parse_args()
    args.batch, args.workers, args.amp = 2, 1, False  # for build_runner
    return args


def main() -> None:
    args = parse_args()
    with user_errors(), tempfile.TemporaryDirectory(dir=args.folder) as folder:
        check_writable(args.json)
        runner = build_runner(args, write_tree(Path(folder) / "data", 10), Path(folder), StepTimes())
        runner.train()  # creates the optimizer's state
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
        hook.background = not args.wait
        waited, seconds = [], []
        for _ in range(args.rounds):
            start = time.perf_counter()
            hook.save_mid_epoch(runner, runner.iter + 1)
            waited.append(time.perf_counter() - start)
            runner.finish_checkpoint()
            seconds.append(time.perf_counter() - start)
        row = {
            "config": args.config,
            "megabytes": training_checkpoints(runner.work_dir)[-1].stat().st_size / 1e6,
            "seconds_waited_median": statistics.median(waited),
            "seconds_waited_most": max(waited),
            "seconds_until_read_back_median": statistics.median(seconds),
            f"percent_of_training_every_{args.minutes}_min": 100 * statistics.median(waited) / (60 * args.minutes),
        }
        report("The cost of a checkpoint", [row], vars(args), args.json)


if __name__ == "__main__":
    main()

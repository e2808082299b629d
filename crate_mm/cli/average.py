"""Average the weights of checkpoints of one model: all of them, or those that validation selects.

python tools/average.py work_dirs/run/epoch_8.pth work_dirs/run/epoch_9.pth work_dirs/run/epoch_10.pth --out mean.pth
python tools/average.py a.pth b.pth c.pth --greedy configs/crate_base_in1k.py --out soup.pth

--greedy validates each checkpoint, starts from the best checkpoint, and adds each other checkpoint unless the average
then scores worse. The final score comes from the data that selected the checkpoints: test the average on other data.

BatchNorm statistics (ToST) are averaged, too. With --greedy or --statistics, they are instead recomputed on the
config's training images with the averaged weights. If a checkpoint holds an average of its run's weights
(ema_momentum), this average is used.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmengine.config import Config

from ..checkpoints import Checkpoint, open_checkpoint
from ..extras.average import Candidate, average, greedy, has_statistics, save, validating, with_own_statistics
from ..inference.standalone import load_config_and_checkpoint
from ..io.untrusted import sanitized, say
from .options import Parser, add_shared, check_output, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoints of one model")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, *.pth")
    parser.add_argument("--greedy", metavar="CONFIG", help="select checkpoints by validation with this config")
    parser.add_argument(
        "--statistics", metavar="CONFIG", help="recompute BatchNorm statistics on this config's training images"
    )
    parser.add_argument(
        "--images", type=positive_int, default=4096, help="number of images for BatchNorm statistics (default: 4096)"
    )
    add_shared(parser, "--force", "--cfg-options")
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` if the arguments are invalid or conflict, or if ``--out`` would overwrite a file."""
    check_output(args.out, (".pth",), "{} must be named *.pth; tools/publish.py converts it to safetensors", args.force)
    if len(args.checkpoints) < 2:
        raise ValueError("expected two checkpoints or more")
    files = [Path(path).resolve() for path in args.checkpoints]
    duplicate = next((path for path, file in zip(args.checkpoints, files) if files.count(file) > 1), None)
    if duplicate:
        raise ValueError(f"{sanitized(duplicate)} is named twice")
    if args.cfg_options and not (args.greedy or args.statistics):
        raise ValueError("--cfg-options needs --greedy or --statistics: it overrides settings of their config")


def config_for(config: str, args: argparse.Namespace) -> Config:
    """Load a config. If it defines no model, use the model of the first checkpoint."""
    return load_config_and_checkpoint(config, args.checkpoints[0], args.cfg_options, needed=False, full_model=True)[0]


def greedy_average(
    args: argparse.Namespace, finish: Callable[[Checkpoint], Checkpoint]
) -> tuple[Checkpoint, list[str]]:
    """Return the greedy average and notes on it; print each score and each decision."""
    with validating(config_for(args.greedy, args)) as score:

        def score_and_print(checkpoint: Checkpoint) -> float:
            value = score(checkpoint)
            say(f"validated {sanitized(checkpoint.path)}: {score.metric} {value:.4f}")
            return value

        mean, steps, notes = greedy(args.checkpoints, score_and_print, score.greater, finish)
    for step in steps:
        say(line(step, score.metric))
    return mean, [f"accepted {sum(step.accepted for step in steps)} of {len(steps)} checkpoints", *notes]


def line(step: Candidate, metric: str) -> str:
    return (
        f"{sanitized(step.path)}: {metric} {step.score:.4f} alone, {step.soup_score:.4f} in the average: "
        f"{'accepted' if step.accepted else 'rejected'}"
    )


def main() -> None:
    args = parse_args()
    with user_errors():
        check_args(args)
        data = args.statistics or args.greedy
        statistics = has_statistics(open_checkpoint(args.checkpoints[0]))
        if args.statistics and not statistics:
            raise ValueError("--statistics needs a model with BatchNorm: these checkpoints have no BatchNorm")
        finish = partial(with_own_statistics, cfg=config_for(data, args), images=args.images) if data else None
        if args.greedy:
            mean, notes = greedy_average(args, finish if statistics else lambda mean: mean)
        else:
            mean, notes = average(args.checkpoints)
            mean = finish(mean) if statistics and finish else mean
        if statistics:
            recomputed = f"recomputed with the averaged weights on at most {args.images} training images"
            averaged = "averaged, so they differ from statistics computed with the averaged weights"
            notes.append(f"BatchNorm statistics are {recomputed if finish else averaged}")
        for note in notes:
            say(note)
        save(mean, args.out)
    say(f"wrote {sanitized(args.out)}: the average of {', '.join(mean.meta['averaged_from'])}")

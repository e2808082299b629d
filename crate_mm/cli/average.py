"""Average the weights of checkpoints of one model: all of them, or those that a validation chooses.

python tools/average.py work_dirs/run/epoch_8.pth work_dirs/run/epoch_9.pth work_dirs/run/epoch_10.pth --out mean.pth
python tools/average.py a.pth b.pth c.pth --greedy configs/crate_base_in1k.py --out soup.pth

With --greedy each checkpoint is validated by itself. From the best one on, each stays in if the average with it is no
worse. The score of a soup on the data that chose it says too much: test it on other data.

BatchNorm's statistics, which ToST has, are averaged too, unless a config is given for its training data (--greedy,
--statistics): then they are taken anew with the averaged weights. Where a training keeps an average of its weights,
that is what is averaged.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmengine.config import Config

from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.average import Tried, average, greedy, has_statistics, save
from ..engine.soup import validating, with_own_statistics
from ..inference.standalone import load_config_for
from ..io.untrusted import sanitized, say
from .options import Parser, add_cfg_options, check_writable, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoints of one model")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, *.pth")
    parser.add_argument("--greedy", metavar="CONFIG", help="choose by this config's validation")
    parser.add_argument("--statistics", metavar="CONFIG", help="take BatchNorm's statistics on its training data")
    parser.add_argument("--images", type=positive_int, default=4096, help="for these statistics (default: 4096)")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    add_cfg_options(parser)
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that do not go together, or a file that would be lost."""
    out = Path(args.out)
    if out.suffix != ".pth":
        raise ValueError(f"{sanitized(out)} must be named *.pth; tools/publish.py makes a safetensors file of it")
    if out.exists() and not args.force:
        raise ValueError(f"{sanitized(out)} exists: --force overwrites it")
    if len(args.checkpoints) < 2:
        raise ValueError("an average is of two checkpoints or more")
    files = [Path(path).resolve() for path in args.checkpoints]
    twice = next((path for path, file in zip(args.checkpoints, files) if files.count(file) > 1), None)
    if twice:
        raise ValueError(f"{sanitized(twice)} is named twice")
    if args.cfg_options and not (args.greedy or args.statistics):
        raise ValueError("--cfg-options override a config: name one by --greedy or --statistics")
    check_writable(args.out)


def config_for(config: str, args: argparse.Namespace) -> Config:
    """A config with the checkpoints' model where it names none."""
    return load_config_for(config, args.checkpoints[0], args.cfg_options, needed=False, whole=True)[0]


def choose(args: argparse.Namespace, finish: Callable[[Checkpoint], Checkpoint]) -> tuple[Checkpoint, list[str]]:
    """The greedy average, and what is to be said of it; each step is printed."""
    with validating(config_for(args.greedy, args)) as score:

        def told(checkpoint: Checkpoint) -> float:
            value = score(checkpoint)
            say(f"validated {sanitized(checkpoint.path)}: {score.metric} {value:.4f}")
            return value

        mean, tried, notes = greedy(args.checkpoints, told, score.greater, finish)
    for step in tried:
        say(line(step, score.metric))
    return mean, [f"{sum(step.accepted for step in tried)} of {len(tried)} stay in", *notes]


def line(step: Tried, metric: str) -> str:
    return (
        f"{sanitized(step.path)}: {metric} {step.score:.4f} alone, {step.soup_score:.4f} with it: "
        f"{'stays in' if step.accepted else 'left out'}"
    )


def main() -> None:
    args = parse_args()
    with user_errors():
        check_args(args)
        data = args.statistics or args.greedy
        statistics = has_statistics(open_checkpoint(args.checkpoints[0]))
        if args.statistics and not statistics:
            raise ValueError("--statistics is for models with BatchNorm, which these checkpoints have not")
        finish = partial(with_own_statistics, cfg=config_for(data, args), images=args.images) if data else None
        if args.greedy:
            mean, notes = choose(args, finish if statistics else lambda mean: mean)
        else:
            mean, notes = average(args.checkpoints)
            mean = finish(mean) if statistics and finish else mean
        if statistics:
            taken = f"taken with the averaged weights, on {args.images} training images at most"
            notes.append(
                f"BatchNorm's statistics are {taken if finish else 'averaged: not those of the averaged weights'}"
            )
        for note in notes:
            say(note)
        save(mean, args.out)
    say(f"wrote {sanitized(args.out)}: the average of {', '.join(mean.meta['averaged_from'])}")


if __name__ == "__main__":
    main()

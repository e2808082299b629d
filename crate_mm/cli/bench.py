"""Measure how fast a config's model trains and predicts on this machine, and how much memory it takes.

python tools/bench.py configs/crate_base_in1k.py --batch 64 --amp
python tools/bench.py crate_tiny_digits --only inference --json speed.json

The images are random and lie on the device: loading them is not measured. Given is the median of the steps after a
warm-up. On a machine that others use as well no figure is worth much.
"""

import argparse
import json

from mmengine.logging import MMLogger

from ..config import defines_model, load_config
from ..engine.bench import BenchResult, bench
from ..engine.checkpointing.results import environment_info, model_cost
from ..io.files import atomic_file
from ..io.untrusted import sanitized, say
from ..registry import MODELS
from .options import Parser, add_cfg_options, check_writable, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, or the name of one that comes with the package")
    parser.add_argument("--only", choices=["training", "inference"], help="measure one of them (default: both)")
    parser.add_argument("--batch", type=positive_int, default=32, help="images of a step (default: 32)")
    parser.add_argument("--seconds", type=positive_int, default=10, help="to measure each for (default: 10)")
    parser.add_argument("--amp", action="store_true", help="mixed precision: bf16, or fp16 where the GPU has no bf16")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON")
    add_cfg_options(parser)
    return parser.parse_args()


def line(found: BenchResult) -> str:
    """What was measured, for people."""
    spread = f"{1000 * found.least:.1f} to {1000 * found.most:.1f}"
    memory = "" if found.memory is None else f", memory {found.memory / 2**30:.2f} GiB"
    return (
        f"{found.what:<10}{found.images_per_second:10.1f} images/s, {1000 * found.seconds:.1f} ms a step of "
        f"{found.batch} (median of {found.steps}, {spread}), first step {found.first:.1f} s{memory}"
    )


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.json)
        MMLogger.get_instance("bench", log_level="ERROR")  # MMEngine has a line for each parameter
        cfg, machine, found = load_config(args.config, args.cfg_options), environment_info(), []
        if not defines_model(cfg):
            raise ValueError("the config does not name its model: measure a config that does")
        versions = machine["versions"]
        say(f"{machine['device']}, PyTorch {versions['torch']}, {'mixed precision' if args.amp else 'float32'}")
        for what in [args.only] if args.only else ["inference", "training"]:
            found.append(bench(cfg, what, args.batch, args.seconds, args.amp))
            say(line(found[-1]))
        if args.json:
            rows = [{**one._asdict(), "images_per_second": one.images_per_second} for one in found]
            about = {"config": args.config, "amp": args.amp, **model_cost(MODELS.build(cfg.model)), **machine}
            with atomic_file(args.json, text=True) as file:
                file.write(json.dumps({**about, "measured": rows}, indent=2) + "\n")
            say(f"wrote {sanitized(args.json)}")


if __name__ == "__main__":
    main()

"""Measure a model's speed and memory in training and inference on this machine.

python tools/bench.py configs/crate_base_in1k.py --batch 64 --amp
python tools/bench.py crate_tiny_digits --only inference --json speed.json

The images are random and already on the device, so loading is not measured. The result is the median step after a
warm-up. Results on a machine with other load are unreliable.
"""

import argparse

from mmengine.logging import MMLogger

from ..config import defines_model, fill_from_data, load_config
from ..engine.checkpointing.results import environment_info, model_cost
from ..extras.bench import BenchResult, bench
from ..io.files import write_json
from ..io.untrusted import sanitized, say
from ..registry import MODELS
from .options import Parser, add_shared, check_writable, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_shared(parser, "config")
    parser.add_argument("--only", choices=["training", "inference"], help="measure only this mode (default: both)")
    parser.add_argument("--batch", type=positive_int, default=32, help="images per step (default: 32)")
    parser.add_argument("--seconds", type=positive_int, default=10, help="duration per mode, in s (default: 10)")
    add_shared(parser, "--amp", "--json", "--cfg-options")
    return parser.parse_args()


def line(result: BenchResult) -> str:
    """Format a result for the terminal."""
    spread = f"{1000 * result.least:.1f} to {1000 * result.most:.1f}"
    memory = "" if result.memory is None else f", memory {result.memory / 2**30:.2f} GiB"
    return (
        f"{result.what:<10}{result.images_per_second:10.1f} images/s, {1000 * result.seconds:.1f} ms per step of "
        f"{result.batch} (median of {result.steps}, {spread}), first step {result.first:.1f} s{memory}"
    )


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.json)
        MMLogger.get_instance("bench", log_level="ERROR")  # MMEngine logs a line per parameter
        cfg, machine, results = load_config(args.config, args.cfg_options), environment_info(), []
        if not defines_model(cfg):
            raise ValueError("the config defines no model: measure a config that does")
        cfg, _ = fill_from_data(cfg)
        versions = machine["versions"]
        say(f"{machine['device']}, PyTorch {versions['torch']}, {'mixed precision' if args.amp else 'float32'}")
        for mode in [args.only] if args.only else ["inference", "training"]:
            results.append(bench(cfg, mode, args.batch, args.seconds, args.amp))
            say(line(results[-1]))
        if args.json:
            rows = [{**result._asdict(), "images_per_second": result.images_per_second} for result in results]
            run = {"config": args.config, "amp": args.amp, **model_cost(MODELS.build(cfg.model)), **machine}
            write_json(args.json, {**run, "measured": rows})
            say(f"wrote {sanitized(args.json)}")

"""Train a model by a config.

python tools/train.py configs/crate_tiny_digits.py
python tools/train.py configs/crate_base_in1k.py --amp --cfg-options data_root=/data/imagenet
tools/dist_train.sh configs/crate_base_in1k.py 16 --amp
python tools/train.py configs/transfer/pets.py --load-from crate_base.pth
"""

import argparse
import tempfile
from pathlib import Path

from ..checkpoints import newest_checkpoint
from ..config import default_work_dir, load_config, names_model
from ..engine import Runner, amp_optim_wrapper
from ..engine.features import load_config_for
from ..engine.safety.launch import leave_processes
from ..engine.safety.signals import end_when_signalled
from .options import Parser, add_common_options, one_sentence_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, or the name of one that comes with the package")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without one named, from the newest of the work folder, or from the start",
    )
    parser.add_argument(
        "--load-from",
        metavar="CHECKPOINT",
        help="start from the backbone of a checkpoint, of ours or of another code base; the head starts anew, and a "
        "config that names no model takes the checkpoint's",
    )
    parser.add_argument(
        "--model", metavar="CONFIG", help="the config whose model is trained, where CONFIG and CHECKPOINT name no model"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, say what would be trained, and leave nothing behind"
    )
    parser.add_argument("--linear-probe", action="store_true", help="freeze the backbone and train the head alone")
    add_common_options(parser)
    return parser.parse_args()


def source_of_model(args: argparse.Namespace) -> str | Path | None:
    """The checkpoint that says what the model is, where the config does not: the one to start from, or that of a run
    which goes on."""
    if args.load_from or args.model or not args.resume:
        return args.load_from
    plain = load_config(args.config)
    if names_model(plain):
        return args.load_from
    return newest_checkpoint(args.work_dir or default_work_dir(plain)) if args.resume == "newest" else args.resume


def main() -> None:
    args = parse_args()
    end_when_signalled()
    with one_sentence_errors():
        if args.dry_run and args.resume:
            raise ValueError("--dry-run says what a new run would do: leave out --resume")
        mixin = "transfer/linear_probe.py" if args.linear_probe else None
        model = load_config(args.model).get("model") if args.model else None
        source = source_of_model(args)
        options = {"mixin": mixin, "model": model, "whole": source is not args.load_from}
        cfg, opened = load_config_for(args.config, source, args.cfg_options, needed=False, **options)
        cfg.launcher = args.launcher
        if args.work_dir:
            cfg.work_dir = args.work_dir
        if args.amp:
            cfg.optim_wrapper.update(amp_optim_wrapper())
        if args.load_from:
            cfg.load_from = args.load_from
        if args.resume:
            cfg.resume = "newest" if args.resume == "newest" else True
            cfg.load_from = cfg.get("load_from") if args.resume == "newest" else args.resume
        if args.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                cfg.work_dir = folder
                Runner.for_training(cfg, opened)
                leave_processes()
            return
        runner = Runner.for_training(cfg, opened)
        del opened  # its memory
    with one_sentence_errors(show_traceback=True):
        runner.train()
        leave_processes()


if __name__ == "__main__":
    main()

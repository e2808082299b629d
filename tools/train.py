"""Train a model by a config.

python tools/train.py configs/crate_tiny_digits.py
python tools/train.py configs/crate_base_in1k.py --amp --cfg-options data_root=/data/imagenet
tools/dist_train.sh configs/crate_base_in1k.py 16 --amp
python tools/train.py configs/transfer/crate_base_pets.py --load-from crate_base.pth
"""

import argparse
import os

from crate_mm.engine import Runner, amp_optim_wrapper, load_config, newest_checkpoint
from crate_mm.engine.cli import add_common_options, one_sentence_errors
from crate_mm.engine.launch import leave_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        help="start from the backbone of a checkpoint, of ours or of the official code; the head starts anew",
    )
    parser.add_argument("--linear-probe", action="store_true", help="freeze the backbone and train the head alone")
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    damaged: list[str] = []
    with one_sentence_errors():
        mixin = "transfer/linear_probe.py" if args.linear_probe else None
        cfg = load_config(args.config, args.cfg_options, mixin)
        cfg.launcher = args.launcher
        if args.work_dir:
            cfg.work_dir = args.work_dir
        cfg.setdefault("work_dir", f"work_dirs/{args.config.rpartition('/')[2].removesuffix('.py')}")
        if args.amp:
            cfg.optim_wrapper.update(amp_optim_wrapper())
        if args.load_from:
            cfg.load_from = args.load_from
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
            args.resume = args.resume or "newest"  # torchrun has started the processes anew
        if args.resume:
            found = newest_checkpoint(cfg.work_dir, damaged.append) if args.resume == "newest" else args.resume
            if found:
                cfg.resume, cfg.load_from = True, str(found)
        runner = Runner.from_cfg(cfg)
        for sentence in damaged:
            runner.logger.warning(sentence)
        if args.resume and not cfg.get("resume"):
            runner.logger.info(f"nothing to resume in {cfg.work_dir}: starting from the beginning")
        runner.build_for_training()
    with one_sentence_errors(show_traceback=True):
        runner.train()
        leave_processes()


if __name__ == "__main__":
    main()

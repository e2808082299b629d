"""Train a model by a config.

python tools/train.py configs/crate_tiny_digits.py
python tools/train.py configs/crate_base_in1k.py --amp --cfg-options data_root=/data/imagenet
tools/dist_train.sh configs/crate_base_in1k.py 16 --amp
python tools/train.py configs/transfer/crate_base_pets.py --load-from crate_base.pth
"""

import argparse

from mmengine.dist import broadcast_object_list, is_main_process

from crate_mm.engine import Runner, amp_optim_wrapper, load_config, newest_checkpoint
from crate_mm.engine.cli import add_common_options, one_sentence_errors
from crate_mm.engine.launch import env_number, init_processes, leave_processes
from crate_mm.engine.signals import end_when_signalled
from crate_mm.engine.work_dir import hold


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


def to_resume_from(wanted: str | None, work_dir: str) -> tuple[str | None, list[str]]:
    """The checkpoint to resume from, if there is one, and a sentence for each damaged one that is newer.

    The first process looks for it, and tells the others.
    """
    found: str | None = wanted if wanted != "newest" else None
    damaged: list[str] = []
    restarted = env_number("TORCHELASTIC_RESTART_COUNT", 0)  # torchrun has started the processes anew
    if is_main_process() and (restarted or wanted == "newest"):
        newest = newest_checkpoint(work_dir, damaged.append, put_aside=True)
        found = str(newest) if newest else found
    told = [found, damaged]
    broadcast_object_list(told)
    return told[0], told[1]


def main() -> None:
    args = parse_args()
    end_when_signalled()
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
        init_processes(cfg.launcher, cfg.get("env_cfg", {}).get("dist_cfg", {}).get("timeout"))
        hold(cfg.work_dir)
        found, damaged = to_resume_from(args.resume, cfg.work_dir)
        if found:
            cfg.resume, cfg.load_from = True, found
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

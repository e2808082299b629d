"""Train a model by a config.

python tools/train.py configs/crate_tiny_digits.py
python tools/train.py configs/crate_base_in1k.py --amp --cfg-options data_root=/data/imagenet
tools/dist_train.sh configs/crate_base_in1k.py 16 --amp
python tools/train.py configs/transfer/pets.py --load-from crate_base.pth
"""

import argparse
import tempfile

from mmengine.config import Config

from ..checkpoints import Checkpoint, newest_checkpoint, open_checkpoint
from ..config import default_work_dir, defines_model, load_config
from ..engine import Runner, amp_optim_wrapper
from ..engine.parallel.launch import shutdown_distributed
from ..engine.safety.signals import raise_on_signal
from ..inference.standalone import load_config_for
from ..io.files import home
from .options import Parser, add_common_options, user_errors


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


def model_checkpoint(args: argparse.Namespace, plain: Config) -> Checkpoint | str | None:
    """Return the checkpoint that says what the model is, where the config does not: that of ``--load-from``, or the one
    from which the run resumes. The newest of the work folder is returned open, as finding it has opened it."""
    if args.load_from or args.model or not args.resume or defines_model(plain):
        return args.load_from
    if args.resume != "newest":
        return args.resume
    opened = {}
    newest = newest_checkpoint(
        args.work_dir or home(plain.get("work_dir") or default_work_dir(plain)),
        check=lambda path: opened.update({path: open_checkpoint(path)}),
    )
    return opened.get(newest)


def configure(args: argparse.Namespace) -> tuple[Config, Checkpoint | None]:
    """Return the config of the run, and the checkpoint that it begins with where it was opened for its model."""
    plain = load_config(args.config)
    model = load_config(args.model).get("model") if args.model else None
    source = model_checkpoint(args, plain)
    cfg, checkpoint = load_config_for(
        plain,
        source,
        args.cfg_options,
        needed=False,
        mixin="transfer/linear_probe.py" if args.linear_probe else None,
        model=model,
        full_model=source is not args.load_from,
    )
    launch = {"launcher": args.launcher}
    launch |= {"work_dir": args.work_dir} if args.work_dir else {}
    launch |= {"load_from": args.load_from} if args.load_from else {}
    if args.resume:
        newest = args.resume == "newest"
        launch |= {"resume": "newest"} if newest else {"resume": True, "load_from": args.resume}
    launch |= {"optim_wrapper": amp_optim_wrapper()} if args.amp else {}
    cfg.merge_from_dict(launch)
    return cfg, checkpoint


def main() -> None:
    args = parse_args()
    for name in ("load_from", "work_dir", "resume"):  # as Runner.for_training writes them
        if getattr(args, name):
            setattr(args, name, home(getattr(args, name)))
    raise_on_signal()
    with user_errors():
        if args.dry_run and args.resume:
            raise ValueError("--dry-run says what a new run would do: leave out --resume")
        cfg, checkpoint = configure(args)
        if args.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                cfg.work_dir = folder
                Runner.for_training(cfg, checkpoint)
                shutdown_distributed()
            return
        runner = Runner.for_training(cfg, checkpoint)
        del checkpoint  # its memory
    with user_errors(show_traceback=True):
        runner.train()
        shutdown_distributed()


if __name__ == "__main__":
    main()

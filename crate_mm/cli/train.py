"""Train a model from a config.

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
from ..config.kinds import accepts
from ..datasets.base import dataset_of
from ..engine import Runner, amp_optim_wrapper
from ..engine.parallel.launch import shutdown_distributed
from ..engine.safety.consistency import open_on_all
from ..engine.safety.signals import raise_on_signal
from ..inference.standalone import load_config_and_checkpoint
from ..io.files import home
from ..io.untrusted import say
from ..registry import MODELS
from .options import Parser, add_common_options, add_shared, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_shared(parser, "config")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="newest",
        metavar="CHECKPOINT",
        help="resume from CHECKPOINT (default: the newest in the work directory; a new run if there is none)",
    )
    parser.add_argument(
        "--load-from",
        metavar="CHECKPOINT",
        help="initialize the backbone from a checkpoint of crate_mm or a third party; the head is newly initialized. "
        "A config without a model uses the checkpoint's model",
    )
    parser.add_argument(
        "--model", metavar="CONFIG", help="config that defines the model, if neither CONFIG nor CHECKPOINT does"
    )
    parser.add_argument("--dry-run", action="store_true", help="build everything, describe the run, and write nothing")
    parser.add_argument("--linear-probe", action="store_true", help="freeze the backbone and train only the head")
    add_common_options(parser, "logs and checkpoints (default: work_dirs/<config name>)")
    return parser.parse_args()


def model_checkpoint(args: argparse.Namespace, plain: Config) -> Checkpoint | str | None:
    """Return the checkpoint of ``--load-from`` or, if the config defines no model, the checkpoint to resume from.

    The newest checkpoint of the work directory is returned open, because finding it opens it.
    """
    if args.load_from or args.model or not args.resume or defines_model(plain):
        return args.load_from
    if args.resume != "newest":
        return args.resume
    checkpoints = {}
    newest = newest_checkpoint(
        args.work_dir or home(plain.get("work_dir") or default_work_dir(plain)),
        check=lambda path: checkpoints.update({path: open_checkpoint(path)}),
    )
    return checkpoints.get(newest)


def configure(args: argparse.Namespace) -> tuple[Config, Checkpoint | None]:
    """Return the run's config, and the start checkpoint if it was opened to determine the model."""
    plain = load_config(args.config)
    model = load_config(args.model).get("model") if args.model else None
    if args.linear_probe:  # checked before the linear-probe settings are merged
        require_frozen_backbone(plain)
        if isinstance(plain.get("param_scheduler"), list):
            raise ValueError(
                "--linear-probe sets param_scheduler.warmup, but the config has a list: expected one schedule"
            )
    source = model_checkpoint(args, plain)
    cfg, checkpoint = load_config_and_checkpoint(
        plain,
        source,
        args.cfg_options,
        needed=False,
        mixin="transfer/linear_probe.py" if args.linear_probe else None,
        model=model,
        full_model=source is not args.load_from,
    )
    if args.linear_probe:
        require_frozen_backbone(cfg)
    launch = {"launcher": args.launcher}
    launch |= {"work_dir": args.work_dir} if args.work_dir else {}
    launch |= {"load_from": args.load_from} if args.load_from else {}
    if args.resume:
        newest = args.resume == "newest"
        launch |= {"resume": "newest"} if newest else {"resume": True, "load_from": args.resume}
    launch |= {"optim_wrapper": amp_optim_wrapper()} if args.amp else {}
    cfg.merge_from_dict(launch)
    return cfg, checkpoint


def require_frozen_backbone(cfg: Config) -> None:
    """Raise ``ValueError`` if a config defines a task that has no argument ``freeze_backbone``."""
    if defines_model(cfg) and not accepts(MODELS.get(cfg.model.type), "freeze_backbone"):
        raise ValueError(
            f"--linear-probe needs a task that freezes its backbone: {cfg.model.type} has no argument freeze_backbone"
        )


def dry_run(cfg: Config, checkpoint: Checkpoint | None) -> None:
    """Build a run, transfer the weights that it starts from, and print what it would train.

    Raises:
        ValueError: the run would be refused.
    """
    work_dir = cfg.get("work_dir") or default_work_dir(cfg)
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.for_training(cfg, checkpoint)
        start, data = runner.start_checkpoint, runner.train_dataloader.dataset
        if start:
            runner.transfer(open_on_all(start, runner.start.checkpoint))
        if runner.rank == 0:
            trained = sum(parameter.numel() for parameter in runner.task.parameters() if parameter.requires_grad)
            classes = dataset_of(data).classes if runner.task.uses_labels else None
            say(
                f"dry run: every check has passed; without --dry-run, {trained:,} parameters of "
                f"{type(runner.task).__name__} are trained on {len(data):,} samples"
                + (f" of {len(classes)} classes" if classes else "")
                + f", from {f'the weights of {start}' if start else 'random weights'}; the results go to {work_dir}"
            )
        shutdown_distributed()


def main() -> None:
    args = parse_args()
    for name in ("load_from", "work_dir", "resume"):  # expand ~, as Runner.for_training does
        if getattr(args, name):
            setattr(args, name, home(getattr(args, name)))
    raise_on_signal()
    with user_errors():
        if args.dry_run and args.resume:
            raise ValueError("--dry-run describes a new run: leave out --resume")
        cfg, checkpoint = configure(args)
        if args.dry_run:
            dry_run(cfg, checkpoint)
            return
        runner = Runner.for_training(cfg, checkpoint)
        del checkpoint  # frees its memory
    with user_errors(show_traceback=True):
        runner.train()
        shutdown_distributed()

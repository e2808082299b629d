"""Evaluate a checkpoint: top-1 and top-5 accuracy in %, its mean over classes, and cross entropy.

python tools/test.py configs/crate_tiny_digits.py work_dirs/crate_tiny_digits/epoch_20.pth
python tools/test.py configs/crate_base_in1k.py crate_base.pth --real real.json --per-class classes.csv
python tools/test.py configs/crate_base_in1k.py crate_base.pth --folder my/photographs --out predictions.csv
tools/dist_test.sh configs/crate_base_in1k.py crate_base.pth 8 --json result.json
"""

import argparse
import json
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..api import default_class_names
from ..config import default_work_dir, fill_banks
from ..datasets.base import dataset_of
from ..engine import Runner, RunStoppedError, amp_dtype
from ..engine.checkpointing.results import (
    dataset_name,
    environment_info,
    model_cost,
    run_metadata,
    strip_eval_prefix,
    write_result,
)
from ..engine.parallel.launch import shutdown_distributed
from ..evaluation import ClassificationMetric
from ..evaluation.reports import write_confusion, write_per_class, write_predictions
from ..inference.standalone import load_config_for
from ..io.files import atomic_file
from ..io.untrusted import sanitized, say
from .options import Parser, add_common_options, check_writable, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, or the name of one that comes with the package")
    parser.add_argument("checkpoint", help="checkpoint file, of ours or of another code base")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON")
    parser.add_argument("--out", metavar="FILE", help="write a row a sample here, as CSV: label, top classes, scores")
    parser.add_argument("--per-class", metavar="FILE", help="write each class's accuracy here, as CSV")
    parser.add_argument("--confusion", metavar="PREFIX", help="write the confusion matrix to PREFIX.csv and PREFIX.png")
    parser.add_argument("--tta", choices=["flip"], help="average the probabilities of an image and its mirror image")
    parser.add_argument("--real", metavar="FILE", help="ImageNet ReaL's real.json: the accuracy on its labels too")
    parser.add_argument("--folder", metavar="DIR", help="predict the images below a folder, which have no labels")
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_args(args)
        cfg, opened = load_config_for(args.config, args.checkpoint, args.cfg_options, full_model=True)
        cfg.launcher = args.launcher
        cfg.work_dir = args.work_dir or str(Path(cfg.get("work_dir") or default_work_dir(cfg)) / "test")
        cfg.resume, cfg.load_from = False, args.checkpoint
        change_data(cfg, args)
        fill_banks(cfg)
        described = cfg.copy()
        # Training's parts are not built: a machine that only tests need not have the training data.
        for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "ema_momentum"):
            cfg[key] = None
        runner = Runner.from_cfg(cfg)
        runner.build_for_testing(opened)
        if args.tta and runner.task.flip_test is None:
            raise ValueError(f"--tta {args.tta} is for classifiers, the config has {type(runner.task).__name__}")
        if args.tta:
            runner.task.flip_test = True
        if args.amp:
            runner.use_autocast(amp_dtype())
    with user_errors(show_traceback=True):
        metrics = runner.test()
        if is_main_process():
            write_results(args, described, runner, metrics)
        shutdown_distributed()


def check_args(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that do not go together or cannot be written, before the work."""
    pictures = [f"{args.confusion}.csv", f"{args.confusion}.png"] if args.confusion else []
    check_writable(args.json, args.out, args.per_class, *pictures)
    if args.folder:
        if not args.out:
            raise ValueError("--folder needs --out FILE for its predictions: the images have no labels to count with")
        asked = [name for name in ("per_class", "confusion", "real") if getattr(args, name)]
        if asked:
            raise ValueError(f"--{asked[0].replace('_', '-')} needs labels, which the images of --folder have not")


def change_data(cfg: Config, args: argparse.Namespace) -> None:
    """Test on the folder or by the labels that the options name."""
    if not cfg.get("test_dataloader") or not cfg.get("test_evaluator"):
        return  # the Runner says what is missing
    if args.folder:
        cfg.test_dataloader.dataset.source = {"type": "ImageFiles", "root": args.folder}
        cfg.test_dataloader.dataset.source["channels"] = len(cfg.model.get("preprocessor", {}).get("mean", "RGB"))
        if "img_size" in (cfg.model.get("backbone") or {}):
            # Nothing to do after most configs' transforms, but some rely on images of one size.
            size = cfg.model.backbone.img_size
            fit = {"type": "Resize", "size": (size, size) if isinstance(size, int) else tuple(size)}
            cfg.test_dataloader.dataset.transforms = [*cfg.test_dataloader.dataset.get("transforms", ()), fit]
    if args.real:
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        cfg.test_evaluator = [*evaluators, {"type": "ImageNetReaL", "labels": args.real}]


def write_results(args: argparse.Namespace, cfg: Config, runner: Runner, metrics: dict[str, float]) -> None:
    """Print the figures, and write the files: ``result.json`` and those that were asked for."""
    found = [m for m in runner.test_evaluator.metrics if type(m) is ClassificationMetric]
    if not found and (args.out or args.per_class or args.confusion):
        raise ValueError(
            "--out, --per-class and --confusion need a ClassificationMetric in the config's test_evaluator"
        )
    samples = found[0].samples if found else {}
    figures = strip_eval_prefix(metrics)
    if found:
        figures["num_samples"] = len(samples["label"])
    task, dataset, tested = runner.task, dataset_of(runner.test_dataloader.dataset), runner.tested
    names = dataset.classes or tested.class_names
    if found and not names:
        names = default_class_names(task.num_classes)
    trained = tested.model or {}
    metric, rule = task.headline
    result = {
        **run_metadata(
            cfg, tested.meta.get("seed"), tested.meta.get("initialized_from"), trained.get("freeze_backbone", False)
        ),
        "recipe": tested.meta.get("recipe"),
        "dataset": dataset_name(cfg.test_dataloader.dataset, cfg.get("data_root")),
        "checkpoint": args.checkpoint,
        "run": tested.run,
        "launch": tested.info.get("launch"),
        "epochs": tested.meta.get("epoch"),
        "tta": args.tta,
        "headline": {"metric": next(iter(strip_eval_prefix({metric: 0}))), "rule": rule},
        "last": figures,
        "wall_time_s": round(runner.test_seconds, 1),
        **model_cost(task),
        **environment_info(runner.world_size),
    }
    told = (f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items())
    line = ", ".join(told)
    entry = {"config": args.config, "checkpoint": args.checkpoint, **figures}
    # The figures first: they cost the most, and need the least room.
    reports = [
        (f"{runner.work_dir}/result.json", lambda: write_result(runner.work_dir, result)),
        (args.json, lambda: write_json(args.json, entry)),
        ("the line of figures", lambda: say(line)),  # into a pipe that has ended, perhaps
        (args.out, lambda: write_predictions(args.out, samples, names, dataset.describe)),
        (args.per_class, lambda: write_per_class(args.per_class, samples, names)),
        (args.confusion, lambda: write_confusion(args.confusion, samples, names)),
    ]
    failed = []
    for file, write in reports:
        try:
            if file:
                write()
        except Exception as error:  # one that fails costs none of the others
            failed.append(f"{sanitized(file)} is not written ({type(error).__name__}: {error})")
    if failed:
        raise RunStoppedError(f"{'; '.join(failed)}; everything else that was asked for is")


def write_json(file: str, entry: dict) -> None:
    with atomic_file(file, text=True) as opened:
        opened.write(json.dumps(entry, indent=2) + "\n")


if __name__ == "__main__":
    main()

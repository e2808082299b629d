"""Evaluate a checkpoint: top-1 and top-5 accuracy in %, mean accuracy over classes, and cross entropy.

python tools/test.py configs/crate_tiny_digits.py work_dirs/crate_tiny_digits/epoch_20.pth
python tools/test.py configs/crate_base_in1k.py crate_base.pth --real real.json --per-class classes.csv
python tools/test.py configs/crate_base_in1k.py crate_base.pth --folder my/photographs --out predictions.csv
tools/dist_test.sh configs/crate_base_in1k.py crate_base.pth 8 --json result.json
"""

import argparse
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
from ..extras.evaluation_reports import write_confusion, write_per_class, write_predictions
from ..inference.standalone import load_config_and_checkpoint, use_folder
from ..io.files import write_json
from ..io.untrusted import sanitized, say
from .options import Parser, add_common_options, add_shared, check_writable, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_shared(parser, "config")
    parser.add_argument("checkpoint", help="checkpoint file, from crate_mm or a third party")
    add_shared(parser, "--json")
    parser.add_argument("--out", metavar="FILE", help="write one CSV row per sample: label, top classes, scores")
    parser.add_argument("--per-class", metavar="FILE", help="write the accuracy of each class to FILE, as CSV")
    parser.add_argument("--confusion", metavar="PREFIX", help="write the confusion matrix to PREFIX.csv and PREFIX.png")
    parser.add_argument("--tta", choices=["flip"], help="average the probabilities of an image and its mirror image")
    parser.add_argument("--real", metavar="FILE", help="ImageNet ReaL's real.json; adds the accuracy on its labels")
    parser.add_argument("--folder", metavar="DIR", help="predict the unlabeled images below a folder")
    add_common_options(parser, "logs and result.json (default: work_dirs/<config name>/test)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_args(args)
        cfg, checkpoint = load_config_and_checkpoint(args.config, args.checkpoint, args.cfg_options, full_model=True)
        cfg.launcher = args.launcher
        cfg.work_dir = args.work_dir or str(Path(cfg.get("work_dir") or default_work_dir(cfg)) / "test")
        cfg.resume, cfg.load_from = False, args.checkpoint
        apply_data_options(cfg, args)
        fill_banks(cfg)
        full_cfg = cfg.copy()
        # Do not build the training parts: a machine that only tests may lack the training data.
        for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "ema_momentum"):
            cfg[key] = None
        runner = Runner.for_testing(cfg, checkpoint)
        if args.tta and runner.task.flip_test is None:
            raise ValueError(f"--tta {args.tta} needs a classifier, got {type(runner.task).__name__}")
        if args.tta:
            runner.task.flip_test = True
        if args.amp:
            runner.use_autocast(amp_dtype())
    with user_errors(show_traceback=True):
        metrics = runner.test()
        if is_main_process():
            write_results(args, full_cfg, runner, metrics)
        shutdown_distributed()


def check_args(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for conflicting options or output files that cannot be written."""
    pictures = [f"{args.confusion}.csv", f"{args.confusion}.png"] if args.confusion else []
    check_writable(args.json, args.out, args.per_class, *pictures)
    if args.folder:
        if not args.out:
            raise ValueError("--folder needs --out FILE: the images have no labels, so predictions are the only result")
        need_labels = [name for name in ("per_class", "confusion", "real") if getattr(args, name)]
        if need_labels:
            raise ValueError(f"--{need_labels[0].replace('_', '-')} needs labels: the images of --folder have none")


def apply_data_options(cfg: Config, args: argparse.Namespace) -> None:
    """Apply ``--folder`` and ``--real`` to the test data and metrics of a config."""
    if not cfg.get("test_dataloader") or not cfg.get("test_evaluator"):
        return  # the Runner raises an error that names the missing setting
    if args.folder:
        use_folder(cfg, args.folder)
    if args.real:
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        cfg.test_evaluator = [*evaluators, {"type": "ImageNetReaL", "labels": args.real}]


def write_results(args: argparse.Namespace, cfg: Config, runner: Runner, metrics: dict[str, float]) -> None:
    """Print the metrics, and write ``result.json`` and the files that the options name."""
    classification = [m for m in runner.test_evaluator.metrics if type(m) is ClassificationMetric]
    if not classification and (args.out or args.per_class or args.confusion):
        raise ValueError(
            "--out, --per-class and --confusion need a ClassificationMetric in the config's test_evaluator"
        )
    samples = classification[0].samples if classification else {}
    metrics = strip_eval_prefix(metrics)
    if classification:
        metrics["num_samples"] = len(samples["label"])
    task, dataset, tested = runner.task, dataset_of(runner.test_dataloader.dataset), runner.tested
    names = dataset.classes or tested.class_names
    if classification and not names:
        names = default_class_names(task.num_classes)
    model_cfg = tested.model or {}
    metric, rule = task.headline
    result = {
        **run_metadata(
            cfg,
            tested.meta.get("seed"),
            tested.meta.get("initialized_from"),
            model_cfg.get("freeze_backbone", False),
        ),
        "recipe": tested.meta.get("recipe"),
        "dataset": dataset_name(cfg.test_dataloader.dataset, cfg.get("data_root")),
        "checkpoint": args.checkpoint,
        "run": tested.run,
        "launch": tested.info.get("launch"),
        "epochs": tested.meta.get("epoch"),
        "tta": args.tta,
        "headline": {"metric": next(iter(strip_eval_prefix({metric: 0}))), "rule": rule},
        "last": metrics,
        "wall_time_s": round(runner.test_seconds, 1),
        **model_cost(task),
        **environment_info(runner.world_size),
    }
    parts = (f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items())
    line = ", ".join(parts)
    entry = {"config": args.config, "checkpoint": args.checkpoint, **metrics}
    # Write the metrics first: they took longest to compute and need the least disk space.
    reports = [
        (f"{runner.work_dir}/result.json", lambda: write_result(runner.work_dir, result)),
        (args.json, lambda: write_json(args.json, entry)),
        (not args.folder and "the line of metrics", lambda: say(line)),  # stdout may be a closed pipe
        (args.out, lambda: write_predictions(args.out, samples, names, dataset.describe)),
        (args.per_class, lambda: write_per_class(args.per_class, samples, names)),
        (args.confusion, lambda: write_confusion(args.confusion, samples, names)),
        (args.folder and "the last line", lambda: say(f"predicted {metrics['num_samples']:,} images: {args.out}")),
    ]
    failed = []
    for file, write in reports:
        try:
            if file:
                write()
        except Exception as error:  # still write the remaining files
            failed.append(f"could not write {sanitized(file)} ({type(error).__name__}: {error})")
    if failed:
        raise RunStoppedError(f"{'; '.join(failed)}; all other results were written")

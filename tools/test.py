"""Evaluate a checkpoint: top-1 and top-5 accuracy in % and cross entropy.

python tools/test.py configs/crate_tiny_digits.py work_dirs/crate_tiny_digits/epoch_20.pth
tools/dist_test.sh configs/crate_base_in1k.py crate_base.pth 8 --json result.json
"""

import argparse
import csv
import json
from pathlib import Path

import torch
from mmengine.dist import is_main_process

from crate_mm.engine import Runner, amp_dtype, load_config
from crate_mm.engine.cli import add_common_options, check_writable, one_sentence_errors
from crate_mm.engine.launch import leave_processes
from crate_mm.evaluation import ClassificationMetric


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file, or the name of one that comes with the package")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, as JSON")
    parser.add_argument("--out", metavar="FILE", help="write a row a sample here, as CSV: label, top classes, scores")
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        check_writable(args.json, args.out)
        cfg = load_config(args.config, args.cfg_options)
        cfg.launcher = args.launcher
        cfg.work_dir = args.work_dir or str(Path(cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}") / "test")
        cfg.resume, cfg.load_from = False, args.checkpoint
        # Training's parts are not built: a machine that only tests need not have the training data.
        for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "ema_momentum"):
            cfg[key] = None
        runner = Runner.from_cfg(cfg)
        runner.build_for_testing()
        if args.amp:
            runner.use_autocast(amp_dtype())
    with one_sentence_errors(show_traceback=True):
        metrics = runner.test()
        if is_main_process():
            write_results(args, runner, metrics)
        leave_processes()


def write_results(args: argparse.Namespace, runner: Runner, metrics: dict[str, float]) -> None:
    """Print the figures, and write the files that were asked for."""
    figures = {key.removeprefix("eval/"): value for key, value in metrics.items()}
    found = [m for m in runner.test_evaluator.metrics if isinstance(m, ClassificationMetric)]
    if found:
        figures["num_samples"] = len(found[0].samples["label"])
    print(
        ", ".join(
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
    )
    if args.json:
        entry = {"config": args.config, "checkpoint": args.checkpoint, **figures}
        Path(args.json).write_text(json.dumps(entry, indent=2) + "\n")
    if args.out:
        if not found:
            raise ValueError("--out needs a ClassificationMetric in the config's test_evaluator")
        write_predictions(args.out, found[0].samples, runner.test_dataloader.dataset)


def write_predictions(path: str, samples: dict[str, torch.Tensor], dataset) -> None:
    """Write a row a sample: its position, image, label, and the most likely classes with their probabilities."""
    k = samples["top"].shape[1]
    names = dataset.classes or [str(i) for i in range(int(samples["top"].max()) + 1)]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        ranks = range(1, k + 1)
        writer.writerow(["sample_idx", "image", "label", *(f"top{r}" for r in ranks), *(f"score{r}" for r in ranks)])
        rows = zip(*(samples[key].tolist() for key in ("sample_idx", "label", "top", "score")))
        for position, label, top, score in rows:
            writer.writerow([position, dataset.path(position), names[label], *(names[c] for c in top), *score])


if __name__ == "__main__":
    main()

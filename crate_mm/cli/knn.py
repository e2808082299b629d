"""Evaluate a backbone's features with a k-nearest-neighbor classifier, without training.

python tools/knn.py configs/transfer/pets.py crate_base.pth --cfg-options data_root=data
"""

import argparse
import time

from ..checkpoints import TransferReport
from ..checkpoints.fit import BACKBONE
from ..config import default_work_dir
from ..engine.checkpointing.results import environment_info, model_cost, origin_of, run_metadata, write_result
from ..evaluation import extract_features, knn_predict
from ..evaluation.knn import check_vote
from ..inference.standalone import build_loader, build_transferred_model, load_config_and_checkpoint
from ..io.untrusted import sanitized, say
from .options import Parser, add_shared, positive_int, user_errors

MAX_LISTED = 20  # number of tensors to list in the log, and number of prefixes


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_shared(parser, "config")
    parser.add_argument("checkpoint", help="checkpoint with the backbone, of any task")
    parser.add_argument("--k", type=positive_int, default=20, help="number of neighbors that vote (default: 20)")
    parser.add_argument(
        "--temperature", type=float, help="T in a neighbor's weight, exp(similarity / T) (default: equal weights)"
    )
    parser.add_argument("--work-dir", help="directory for result.json (default: work_dirs/<config name>/knn)")
    add_shared(parser, "--cfg-options")
    return parser.parse_args()


def describe(report: TransferReport, part: str = "backbone") -> str:
    """List, as text, the tensors of a checkpoint that are used, resized or not used.

    Args:
        report: its tensor names begin with ``part`` if the whole checkpoint was loaded, otherwise with 'backbone'.
        part: part of the checkpoint that computes the features, such as 'teacher'.
    """
    prefix = f"{part}." if any(name.startswith(f"{part}.") for name in report.loaded) else BACKBONE
    dropped = {name: reason for name, reason in report.dropped.items() if name.startswith(prefix)}
    exceptions = {**report.resized, **dropped}
    others = (name.split(".") for name in report.dropped if name not in dropped)
    parts = sorted({".".join(names[: 1 + (names[0] == part)]) for names in others})
    lines = [f"  features of its {sanitized(part)}: {len(report.loaded)} tensors loaded unchanged"]
    for name, reason in list(exceptions.items())[:MAX_LISTED]:
        lines.append(f"  {'resized' if name in report.resized else 'not used'}: {sanitized(name)}, {reason}")
    lines += [f"  and {len(exceptions) - MAX_LISTED} more of the backbone"] * (len(exceptions) > MAX_LISTED)
    if parts:
        listed = ", ".join(map(sanitized, parts[:MAX_LISTED])) + ", ..." * (len(parts) > MAX_LISTED)
        lines.append(f"  not used: its {listed}, because the neighbors vote on the class")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    with user_errors():
        cfg, checkpoint = load_config_and_checkpoint(args.config, args.checkpoint, args.cfg_options)
        work_dir = args.work_dir or f"{default_work_dir(cfg)}/knn"
        model, report = build_transferred_model(cfg, checkpoint)
        checkpoint.log_notes(say)
        part = cfg.get("transfer_from") or checkpoint.meta.get("transfer_from") or next(iter(checkpoint.parts), None)
        say(f"{args.checkpoint}:", *describe(report, part or "backbone").split("\n"))
        train_loader, test_loader = build_loader(cfg, "train"), build_loader(cfg, "test")
        check_vote(args.k, args.temperature, len(train_loader.dataset))
        start = time.perf_counter()
        train, train_labels, _ = extract_features(model, train_loader)
        test, test_labels, _ = extract_features(model, test_loader)
        predictions = knn_predict(train, train_labels, test, args.k, temperature=args.temperature)
        top1 = 100 * (predictions == test_labels).double().mean().item()
        metadata = run_metadata(cfg, checkpoint.meta.get("seed"), args.checkpoint, origin=origin_of(checkpoint))
        weighting = {} if args.temperature is None else {"temperature": args.temperature}
        result = {
            **metadata,
            "recipe": {**metadata["recipe"], "k": args.k, **weighting},
            "kind": "k-NN",
            "k": args.k,
            **weighting,
            "headline": {"metric": "top1", "rule": "greater"},
            "last": {"top1": top1, "num_samples": len(test)},
            "wall_time_s": round(time.perf_counter() - start, 1),
            **model_cost(model),
            **environment_info(),
        }
        write_result(work_dir, result)
    say(f"top1 {top1:.4f} (k {args.k}, {len(train)} training and {len(test)} test images)")

"""Classify by the nearest neighbours on a backbone's features: how good they are, without training anything.

python tools/knn.py configs/transfer/pets.py crate_base.pth --cfg-options data_root=data
"""

import argparse
import time

from ..checkpoints import TransferReport
from ..checkpoints.fit import BACKBONE
from ..config import default_work_dir
from ..engine.checkpointing.results import environment_info, model_cost, origin_of, run_metadata, write_result
from ..evaluation import extract_features, knn_predict
from ..inference.standalone import build_backbone_from, build_loader, load_config_for
from ..io.untrusted import sanitized, say
from .options import Parser, add_cfg_options, positive_int, user_errors

MOST_NAMED = 20  # of what is resized or not used


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, or the name of one that comes with the package")
    parser.add_argument("checkpoint", help="checkpoint whose backbone is used, of this or of another task")
    parser.add_argument("--k", type=positive_int, default=20, help="how many neighbours vote (default: 20)")
    parser.add_argument(
        "--temperature", type=float, help="T: a neighbor of similarity s counts exp(s / T) (default: 1)"
    )
    parser.add_argument("--work-dir", help="folder for result.json (default: work_dirs/<config name>/knn)")
    add_cfg_options(parser)
    return parser.parse_args()


def describe(table: TransferReport) -> str:
    """What of a checkpoint the features come from, and what they do without, in a sentence each."""
    unlike = {**table.resized, **{name: what for name, what in table.dropped.items() if name.startswith(BACKBONE)}}
    parts = sorted({name.partition(".")[0] for name in table.dropped if not name.startswith(BACKBONE)})
    lines = [f"  the features are those of its backbone: {len(table.loaded)} tensors as they are in the file"]
    for name, what in list(unlike.items())[:MOST_NAMED]:
        lines.append(f"  {'resized' if name in table.resized else 'not used'}: {sanitized(name)}, {what}")
    lines += [f"  and {len(unlike) - MOST_NAMED} more of the backbone"] * (len(unlike) > MOST_NAMED)
    if parts:
        named = ", ".join(map(sanitized, parts[:MOST_NAMED])) + ", ..." * (len(parts) > MOST_NAMED)
        lines.append(f"  not used: its {named}; the neighbours vote on the class, from features alone")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    with user_errors():
        cfg, opened = load_config_for(args.config, args.checkpoint, args.cfg_options)
        work_dir = args.work_dir or f"{default_work_dir(cfg)}/knn"
        model, transfer = build_backbone_from(cfg, opened)
        opened.log_notes(say)
        say(f"{args.checkpoint}:", *describe(transfer).split("\n"))
        train_loader, test_loader = build_loader(cfg, "train"), build_loader(cfg, "test")
        start = time.perf_counter()
        train, train_labels, _ = extract_features(model, train_loader)
        test, test_labels, _ = extract_features(model, test_loader)
        guesses = knn_predict(train, train_labels, test, args.k, temperature=args.temperature)
        top1 = 100 * (guesses == test_labels).double().mean().item()
        described = run_metadata(cfg, opened.meta.get("seed"), args.checkpoint, origin=origin_of(opened))
        weighting = {} if args.temperature is None else {"temperature": args.temperature}
        result = {
            **described,
            "recipe": {**described["recipe"], "k": args.k, **weighting},
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


if __name__ == "__main__":
    main()

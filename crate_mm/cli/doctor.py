"""Check a machine and a dataset, and report their properties and faults.

python tools/doctor.py
python tools/doctor.py --data /my/images
python tools/doctor.py configs/crate_base_in1k.py --all --cfg-options data_root=/data/imagenet

The exit code is 1 if there is a fault.
"""

import argparse
import codecs
import sys
from collections.abc import Iterator
from itertools import chain

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.text import Text

from ..config import defines_model, load_config, resolve_config
from ..datasets.base import source_of
from ..extras.dataset_check import check_sources, open_root
from ..extras.doctor import Finding, check_machine
from ..io.untrusted import sanitized
from ..registry import DATASETS
from . import REPLACED
from .options import Parser, add_shared, positive_int, user_errors

COLORS = {"ok": "green", "note": "yellow", "fault": "bold red"}
SPLITS = ("train", "val", "test")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", nargs="?", help="config file or packaged config; its data is checked")
    parser.add_argument(
        "--data",
        metavar="ROOT",
        help="dataset to check: a folder with a folder for each split or class, or one that pack-dataset wrote",
    )
    parser.add_argument("--work-dir", default="work_dirs", help="output directory to check (default: work_dirs)")
    parser.add_argument("--sample", type=positive_int, default=200, help="images to read per split (default: 200)")
    parser.add_argument("--all", action="store_true", help="read all images, to find all duplicates")
    add_shared(parser, "--cfg-options")
    return parser.parse_args()


def sources_of(cfg: Config) -> dict:
    """Return the sources of a config's data by split, without splits that repeat another split's source.

    Raises:
        ValueError: the data of a split does not exist.
    """
    resolved, sources, configs = resolve_config(cfg, world_size=1, with_model=False), {}, []
    for split in SPLITS:
        dataset = (resolved.get(f"{split}_dataloader") or {}).get("dataset")
        if dataset and (source := dataset.get("source", dataset)) not in configs:
            configs.append(source)
            sources[split] = source_of(DATASETS.build(source))
    return sources


def check_head(cfg: Config, sources: dict) -> Iterator[Finding]:
    """Compare the number of classes in a config's data with the number in its head."""
    num_classes = ((cfg.get("model") or {}).get("head") or {}).get("num_classes") if defines_model(cfg) else None
    classes = sources["train"].classes if "train" in sources else None
    if num_classes is not None and classes is not None:
        text = f"{len(classes)} classes in the data, {num_classes} in the head (model.head.num_classes)"
        yield "ok" if num_classes == len(classes) else "fault", "head", text


def check_environment() -> Iterator[Finding]:
    """Report replaced environment variables, and a console that is not UTF-8."""
    for name, (value, reason) in REPLACED.items():
        yield "note", name, f"replaced by {value}: {reason}"
    encoding = sys.stdout.encoding if sys.stdout else None
    if encoding and codecs.lookup(encoding).name != "utf-8":
        yield (
            "note",
            "console",
            f"encoding {encoding}: characters that it lacks appear as \\xe9 or the like; set PYTHONUTF8=1",
        )


def findings(args: argparse.Namespace, cfg: Config | None) -> Iterator[tuple[str, Iterator[Finding]]]:
    """Yield the title and findings of each section."""
    yield "machine", chain(check_machine(args.work_dir), check_environment())
    for title, build in (("data", lambda: open_root(args.data)), ("config", lambda: sources_of(cfg))):
        if (args.data if title == "data" else cfg) is None:
            continue
        name = args.data if title == "data" else args.config
        try:
            sources = build()
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            yield f"{title} {sanitized(name)}", iter([("fault", "data", sanitized(error, 1000))])
            continue
        yield f"{title} {sanitized(name)}", check_sources(sources, None if args.all else args.sample)
        if title == "config":
            yield "", check_head(cfg, sources)


def main() -> None:
    args = parse_args()
    with user_errors():
        if args.cfg_options and not args.config:
            raise ValueError("--cfg-options needs CONFIG: it overrides settings of this config")
        cfg = load_config(args.config, args.cfg_options) if args.config else None
        MMLogger.get_instance("doctor", log_level="ERROR")  # the findings repeat the data sources' log messages
        console, counts = Console(soft_wrap=True, highlight=False), dict.fromkeys(COLORS, 0)
        for title, section in findings(args, cfg):
            if title:
                console.print(Text(title, style="bold"))
            for level, topic, text in section:
                counts[level] += 1
                console.print(Text.assemble("  ", (f"{level:<6}", COLORS[level]), f"{topic:<20}{text}"))
        faults = counts["fault"]
        summary = f"faults: {faults}, notes: {counts['note']}"
        console.print(Text(summary, style=COLORS["fault" if faults else "ok"]))
    raise SystemExit(1 if faults else 0)

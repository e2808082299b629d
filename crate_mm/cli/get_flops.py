"""Report a config's parameters and multiply-adds for one image.

python tools/get_flops.py configs/crate_base_in1k.py
python tools/get_flops.py configs/crate_base_in1k.py --shape 384 384 --json flops.json
"""

import argparse
import inspect
import json

from rich.console import Console
from rich.table import Table

from ..analysis.cost import Complexity, count_complexity
from ..api import init_model
from ..config import load_config
from ..io.files import atomic_file
from ..models.tasks.base import task_of
from ..registry import BACKBONES
from .options import Parser, add_cfg_options, check_writable, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, or the name of a packaged config")
    parser.add_argument("--shape", type=int, nargs=2, metavar=("H", "W"), help="image size (default: the config's)")
    parser.add_argument("--depth", type=int, default=3, help="depth of the table of modules (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the report to FILE, as JSON")
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.json)
        cfg = load_config(args.config, args.cfg_options)
        if not cfg.get("model"):
            raise ValueError(f"config {args.config} has no model")
        backbone = cfg.model.get("backbone") or {}
        if args.shape and backbone and "img_size" in inspect.signature(BACKBONES.get(backbone.type)).parameters:
            cfg.model.backbone.img_size = tuple(args.shape)
        model = task_of(init_model(cfg))
        report = count_complexity(model, model.example(args.shape), args.depth)
        print_report(report, title=str(args.config))
        if args.json:
            data = {**report._asdict(), "modules": [module._asdict() for module in report.modules]}
            with atomic_file(args.json, text=True) as file:
                file.write(json.dumps({"config": args.config, **data}, indent=2) + "\n")


def print_report(report: Complexity, title: str) -> None:
    """Print the table of modules and the totals."""
    table = Table(title=f"{title}, input {' x '.join(map(str, report.input_shape))}")
    for column in ("module", "type"):
        table.add_column(column)
    for column in ("parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    for module in report.modules:
        indent = "  " * module.name.count(".") + module.name.rpartition(".")[2]
        table.add_row(indent, module.kind, f"{module.parameters:,}", f"{module.flops:,}")
    table.add_section()
    table.add_row("total", "", f"{report.parameters:,}", f"{report.flops:,}")
    console = Console()
    console.print(table)
    by_operator = ", ".join(f"{name} {flops / 1e9:.3g}" for name, flops in report.by_operator.items() if flops)
    console.print(f"parameters: {report.parameters / 1e6:.2f} M", highlight=False, soft_wrap=True)
    console.print(
        f"FLOPs: {report.flops / 1e9:.3g} G (one multiply-add counts as one)", highlight=False, soft_wrap=True
    )
    console.print(f"  of these, in G: {by_operator}", highlight=False, soft_wrap=True)
    uncounted = ", ".join(f"{name.removeprefix('aten::')} {times}" for name, times in report.uncounted.items())
    console.print(f"  not counted, with number of calls: {uncounted}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

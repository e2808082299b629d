"""Report a config's parameters and multiply-adds for one image.

python tools/get_flops.py configs/crate_base_in1k.py
python tools/get_flops.py configs/crate_base_in1k.py --shape 384 384 --json flops.json
"""

import argparse

from rich.console import Console
from rich.table import Table

from ..analysis.cost import Complexity, count_complexity
from ..api import init_model
from ..config import load_config
from ..inference.standalone import set_image_size
from ..io.files import write_json
from ..models.tasks.base import task_of
from .options import Parser, add_shared, check_writable, positive_int, user_errors


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add_shared(parser, "config")
    parser.add_argument(
        "--shape", type=positive_int, nargs=2, metavar=("H", "W"), help="image size (default: the config's)"
    )
    parser.add_argument("--depth", type=positive_int, default=3, help="depth of the table of modules (default: 3)")
    add_shared(parser, "--json", "--cfg-options")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        check_writable(args.json)
        cfg = load_config(args.config, args.cfg_options)
        if not cfg.get("model"):
            raise ValueError(f"config {args.config} has no model")
        if args.shape:
            set_image_size(cfg, tuple(args.shape))
        model = task_of(init_model(cfg))
        example = model.example(args.shape)
        if args.shape and args.shape not in [list(value.shape[-2:]) for value in example.values()]:
            raise ValueError(f"--shape is for models of images, got {type(model).__name__}")
        report = count_complexity(model, example, args.depth)
        print_report(report, title=str(args.config))
        if args.json:
            as_json = {**report._asdict(), "modules": [module._asdict() for module in report.modules]}
            write_json(args.json, {"config": args.config, **as_json})


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

"""Plot the curves of runs, or the learning-rate schedule of a config.

python tools/plot.py work_dirs/crate_tiny_digits --out curves.png
python tools/plot.py work_dirs/one work_dirs/two --keys loss top1 --out curves.csv
python tools/plot.py --schedule configs/crate_base_in1k.py --samples 1281167 --out schedule.png

A resumed run is one curve. The schedule is computed by the config's own schedulers without training.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

from ..analysis.figures.curves import plot_curves
from ..analysis.figures.sheet import save_sheet
from ..config import defines_model, load_config
from ..extras.curves import Point, Schedule, find_key, read_run, schedule
from ..io.files import atomic_file
from ..io.untrusted import sanitized, say, spreadsheet_cell
from .options import Parser, add_shared, check_output, distinct_names, positive_int, user_errors

DEFAULT_KEYS = ("loss", "eval/top1", "eval/loss", "lr")
SCHEDULE_POINTS = 2000  # approximate number of points drawn per schedule
MAX_PANELS, MAX_CURVES = 40, 500  # per picture; a CSV file has no limit


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="work directory of a run")
    parser.add_argument(
        "--keys", nargs="+", metavar="KEY", help=f"values to plot (default: {', '.join(DEFAULT_KEYS)}, if logged)"
    )
    parser.add_argument("--schedule", metavar="CONFIG", help="plot the schedule of a config, not runs")
    parser.add_argument(
        "--samples",
        type=positive_int,
        metavar="N",
        help="number of training images, if the data is not on this machine",
    )
    parser.add_argument(
        "--out", metavar="FILE", default="curves.png", help="*.png, *.pdf or *.csv (default: curves.png)"
    )
    add_shared(parser, "--cfg-options")
    return parser.parse_args()


def names_of(runs: Iterable[str]) -> list[str]:
    """Return short distinct names of directories: the last parts of their paths."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ValueError("a run is named twice")
    return [sanitized(name) for name in distinct_names(paths, stems=False)]


def select_keys(runs: dict[str, dict[str, list[Point]]], requested: list[str] | None) -> list[str]:
    """Return the full names of the requested values, or else the default ones that were logged."""
    logged_keys = {name for curves in runs.values() for name in curves}
    if requested:
        return [find_key(key, logged_keys) for key in requested]
    return [key for key in DEFAULT_KEYS if key in logged_keys] or sorted(logged_keys)


def check_drawable(panels: int, curves: int) -> None:
    """Raise ``ValueError`` if a picture would have too many panels or curves."""
    if panels > MAX_PANELS or curves > MAX_CURVES:
        raise ValueError(
            f"expected at most {MAX_PANELS} panels and {MAX_CURVES} curves, got {panels:,} and {curves:,}: "
            "name fewer runs, fewer values with --keys, or --out FILE.csv"
        )


def as_panels(runs: dict[str, dict[str, list[Point]]], keys: list[str]) -> tuple[dict, dict]:
    """Return the arguments of ``plot_curves``: by epoch if all points have one, otherwise by iteration."""
    panels, x = {}, {}
    for key in keys:
        lines = {run: curves[key] for run, curves in runs.items() if key in curves}
        by_epoch = all(point.epoch is not None for points in lines.values() for point in points)
        if not by_epoch and any(point.iteration is None for points in lines.values() for point in points):
            raise ValueError(f"{key} is logged by epoch in some runs, by iteration in others: plot them separately")
        x[key] = "epoch" if by_epoch else "iteration"
        panels[key] = {
            run: ([point.epoch if by_epoch else point.iteration for point in points], [p.value for p in points])
            for run, points in lines.items()
        }
    return panels, x


def schedule_panels(schedule: Schedule) -> tuple[dict, dict]:
    """Return the arguments of ``plot_curves`` for a schedule, subsampled with its first and last points."""
    panels: dict[str, dict] = {}
    for label, values in schedule.values.items():
        step = max(len(values) // SCHEDULE_POINTS, 1)
        indices = sorted({*range(0, len(values), step), len(values) - 1})
        name, _, groups = label.partition(", ")
        curve = [i / schedule.steps for i in indices], [values[i] for i in indices]
        panels.setdefault(name, {})[groups or name] = curve
    return panels, dict.fromkeys(panels, "epoch")


def write_rows(file: str, rows: Iterable[Iterable]) -> None:
    with atomic_file(file, text=True) as stream:
        csv.writer(stream).writerows([spreadsheet_cell(cell) for cell in row] for row in rows)


def curve_rows(runs: dict[str, dict[str, list[Point]]], keys: list[str]) -> Iterable[list]:
    yield ["run", "key", "iteration", "epoch", "value"]
    for run, curves in runs.items():
        for key in keys:
            yield from ([run, key, *point] for point in curves.get(key, ()))


def schedule_rows(schedule: Schedule) -> Iterable[list]:
    """Yield the header and one row per iteration (from 1, as in the logs): number, epoch at its end, values it uses."""
    yield ["iteration", "epoch", *schedule.values]
    for number, values in enumerate(zip(*schedule.values.values()), 1):
        yield [number, number / schedule.steps, *values]


def main() -> None:
    args = parse_args()
    with user_errors():
        kind = check_output(args.out, (".png", ".pdf", ".csv"), "--out {} must end in .png, .pdf or .csv")
        if bool(args.runs) == bool(args.schedule):
            raise ValueError("give either the work directories of runs or --schedule CONFIG")
        if args.schedule and args.keys:
            raise ValueError("--keys selects values of runs: a schedule is plotted whole")
        if not args.schedule and (args.samples or args.cfg_options):
            raise ValueError("--samples and --cfg-options need --schedule CONFIG")
        if args.schedule:
            cfg = load_config(args.schedule, args.cfg_options)
            if not defines_model(cfg):  # use a small model in place of the checkpoint's
                cfg = load_config(args.schedule, args.cfg_options, model=load_config("debug").model.to_dict())
            lr_schedule = schedule(cfg, args.samples)
            rows, (panels, x) = schedule_rows(lr_schedule), schedule_panels(lr_schedule)
            contents = f"{len(next(iter(lr_schedule.values.values())))} iterations, {lr_schedule.steps} per epoch"
        else:
            runs = dict(zip(names_of(args.runs), map(read_run, args.runs)))
            keys = select_keys(runs, args.keys)
            rows, (panels, x) = curve_rows(runs, keys), as_panels(runs, keys)
            contents = f"{', '.join(keys)} of {len(runs)} run{'s' if len(runs) > 1 else ''}"
        if kind == ".csv":
            write_rows(args.out, rows)
        else:
            check_drawable(len(panels), sum(map(len, panels.values())))
            save_sheet(plot_curves(panels, x), args.out)
    say(f"wrote {sanitized(args.out)}: {contents}")

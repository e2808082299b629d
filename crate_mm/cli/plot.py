"""Draw the curves of runs, or the learning rate that a config schedules.

python tools/plot.py work_dirs/crate_tiny_digits --out curves.png
python tools/plot.py work_dirs/one work_dirs/two --keys loss top1 --out curves.csv
python tools/plot.py --schedule configs/crate_base_in1k.py --samples 1281167 --out schedule.png

A run that was stopped and resumed is one curve. The schedule is that of the config's own schedulers, which go through
the run without training.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

from ..analysis.figures.curves import plot_curves
from ..analysis.figures.sheet import save_sheet
from ..config import defines_model, load_config
from ..engine.curves import Point, Schedule, find_key, read_run, schedule
from ..io.files import atomic_file
from ..io.untrusted import sanitized, say, spreadsheet_cell
from .options import Parser, add_cfg_options, check_writable, positive_int, user_errors

USUAL = ("loss", "eval/top1", "eval/loss", "lr")
MOST_DRAWN = 2000  # points of a schedule in a picture
MOST_PANELS, MOST_CURVES = 40, 500  # of a picture; a CSV file takes any number


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="work folder of a run")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help=f"what is drawn (default: of {', '.join(USUAL)})")
    parser.add_argument("--schedule", metavar="CONFIG", help="draw the schedule of a config in the place of runs")
    parser.add_argument("--samples", type=positive_int, metavar="N", help="training images, where the data is not here")
    parser.add_argument(
        "--out", metavar="FILE", default="curves.png", help="*.png, *.pdf or *.csv (default: curves.png)"
    )
    add_cfg_options(parser)
    return parser.parse_args()


def names_of(runs: Iterable[str]) -> list[str]:
    """Short names of folders: the last parts of their paths, as many as make them differ."""
    paths = [Path(run).resolve() for run in runs]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = [sanitized("/".join(path.parts[-count:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError("a run is named twice")


def chosen(runs: dict[str, dict[str, list[Point]]], asked: list[str] | None) -> list[str]:
    """The names of what is drawn: what is asked for, or the usual ones that are there."""
    known = {name for curves in runs.values() for name in curves}
    return [find_key(key, known) for key in asked] if asked else [key for key in USUAL if key in known] or sorted(known)


def check_drawable(panels: int, curves: int) -> None:
    """Raise ``ValueError`` if a picture would have too many panels or curves."""
    if panels > MOST_PANELS or curves > MOST_CURVES:
        raise ValueError(
            f"a picture of {panels:,} panels and {curves:,} curves is not drawn, at most {MOST_PANELS} panels and "
            f"{MOST_CURVES} curves are: name fewer runs, fewer values with --keys, or --out FILE.csv"
        )


def as_panels(runs: dict[str, dict[str, list[Point]]], keys: list[str]) -> tuple[dict, dict]:
    """What ``plot_curves`` takes: by epochs where all points have them, by iterations else."""
    panels, x = {}, {}
    for key in keys:
        lines = {run: curves[key] for run, curves in runs.items() if key in curves}
        by_epoch = all(point.epoch is not None for points in lines.values() for point in points)
        if not by_epoch and any(point.iteration is None for points in lines.values() for point in points):
            raise ValueError(f"{key} of some runs is logged by epochs, of others by iterations: draw them one by one")
        x[key] = "epoch" if by_epoch else "iteration"
        panels[key] = {
            run: ([point.epoch if by_epoch else point.iteration for point in points], [p.value for p in points])
            for run, points in lines.items()
        }
    return panels, x


def of_schedule(found: Schedule) -> tuple[dict, dict]:
    """A schedule as ``plot_curves`` takes it: of a long run some points, with its first and its last one."""
    panels: dict[str, dict] = {}
    for label, values in found.values.items():
        step = max(len(values) // MOST_DRAWN, 1)
        kept = sorted({*range(0, len(values), step), len(values) - 1})
        name, _, groups = label.partition(", ")
        panels.setdefault(name, {})[groups or name] = ([i / found.steps for i in kept], [values[i] for i in kept])
    return panels, dict.fromkeys(panels, "epoch")


def write_rows(file: str, rows: Iterable[Iterable]) -> None:
    with atomic_file(file, text=True) as opened:
        csv.writer(opened).writerows([spreadsheet_cell(cell) for cell in row] for row in rows)


def curve_rows(runs: dict[str, dict[str, list[Point]]], keys: list[str]) -> Iterable[list]:
    yield ["run", "key", "iteration", "epoch", "value"]
    for run, curves in runs.items():
        for key in keys:
            yield from ([run, key, *point] for point in curves.get(key, ()))


def schedule_rows(found: Schedule) -> Iterable[list]:
    """A row an iteration, counted from 1 as in the logs: the epoch after it, and what it is taken with."""
    yield ["iteration", "epoch", *found.values]
    for number, values in enumerate(zip(*found.values.values()), 1):
        yield [number, number / found.steps, *values]


def main() -> None:
    args = parse_args()
    with user_errors():
        kind = Path(args.out).suffix.lower()
        if kind not in (".png", ".pdf", ".csv"):
            raise ValueError(f"--out {sanitized(args.out)} must end in .png, .pdf or .csv")
        if bool(args.runs) == bool(args.schedule):
            raise ValueError("name the work folders of runs, or --schedule CONFIG, and not both")
        if not args.schedule and (args.samples or args.cfg_options):
            raise ValueError("--samples and --cfg-options are for --schedule CONFIG")
        check_writable(args.out)
        if args.schedule:
            cfg = load_config(args.schedule, args.cfg_options)
            if not defines_model(cfg):  # a checkpoint will bring it; until then a small one stands in its place
                cfg = load_config(args.schedule, args.cfg_options, model=load_config("debug").model.to_dict())
            found = schedule(cfg, args.samples)
            count, rows, drawn = len(next(iter(found.values.values()))), schedule_rows(found), of_schedule(found)
            said = f"{count} iterations, {found.steps} an epoch"
        else:
            runs = dict(zip(names_of(args.runs), map(read_run, args.runs)))
            keys = chosen(runs, args.keys)
            rows, drawn = curve_rows(runs, keys), as_panels(runs, keys)
            said = f"{', '.join(keys)} of {len(runs)} run{'s' if len(runs) > 1 else ''}"
        if kind == ".csv":
            write_rows(args.out, rows)
        else:
            check_drawable(len(drawn[0]), sum(map(len, drawn[0].values())))
            save_sheet(plot_curves(*drawn), args.out)
    say(f"wrote {sanitized(args.out)}: {said}")


if __name__ == "__main__":
    main()

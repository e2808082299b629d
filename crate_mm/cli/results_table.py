"""Turn the result files of many runs into the layout of the paper's Table 1, in Markdown.

python tools/results_table.py work_dirs
python tools/results_table.py work_dirs/pets work_dirs/cifar10 --figure best

A row is a dataset, a column a model. A cell has the task's headline figure, for classifiers the top-1 accuracy in %:
the mean over the runs, with their smallest and largest, then the paper's figure in brackets where it has one. Runs
that differ in anything of their recipe but the seed have rows of their own, which say in what. A run that was tested
counts with the test's figure. Each headline has a table.

Runs of one recipe and seed all count, unless a run was put aside (before_<time>) and there is another in its place.
"""

import argparse
import json
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from ..io.untrusted import check_plain, is_count, read_json, read_regular, sanitized, say
from .options import Parser, user_errors

# The paper's Table 1, top-1 accuracy in %.
MODELS = ("crate_tiny", "crate_small", "crate_base", "crate_large", "vit_tiny", "vit_small")
PAPER = {
    "ImageNet": (66.7, 69.2, 70.8, 71.3, 71.5, 72.4),
    "ImageNet ReaL": (74.0, 76.0, 76.5, 77.4, 78.3, 78.4),
    "CIFAR10": (95.5, 96.0, 96.8, 97.2, 96.6, 97.2),
    "CIFAR100": (78.9, 81.0, 82.7, 83.6, 81.8, 83.2),
    "Flowers102": (84.6, 87.1, 88.7, 88.3, 85.1, 88.5),
    "OxfordIIITPet": (81.4, 84.9, 85.3, 87.4, 88.5, 88.6),
}
TITLES = {"crate": "CRATE", "cratemae": "CRATE-MAE", "vit": "ViT"}
STARTED = "initialized_from"
MOST_SAID = 4  # settings in which a recipe differs
MOST_SETTINGS = 20_000  # of a recipe, which has some hundreds
MOST_BYTES = 2**22  # of a result file, which has a few kilobytes
ASIDE = re.compile(r"before_\d{8}_\d{6}(_\d+)?")  # a folder of results that a later run has put aside
# How a dataset is used in the paper; a run of another kind gets a row of its own.
PAPER_KIND = {"ImageNet": "from scratch", "ImageNet ReaL": "from scratch"}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="work folders, searched to the bottom for result.json")
    parser.add_argument(
        "--figure",
        choices=["last", "best"],
        default="last",
        help="of a training run, the last epoch or the best, which was chosen on the images it is measured on",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        say(*table(read_results(args.dirs), args.figure).split("\n"))


def read_results(dirs: list[str]) -> list[dict]:
    """Read every ``result.json`` below some folders.

    Raises:
        ValueError: a folder is missing, none holds a result, or a file is not one of ours.
    """
    results = []
    for folder in map(Path, dirs):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        for file in sorted(folder.rglob("result.json")):
            try:
                result = read_json(read_regular(file, MOST_BYTES))
                check_result(result)
                result.update({key: shown_in_table(result[key]) for key in ("model", "dataset", "kind")})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{file} is not a result file of crate_mm: {sanitized(error)}") from None
            aside = any(map(ASIDE.fullmatch, file.relative_to(folder).parts[:-1]))
            results.append({**result, "file": file, "aside": aside})
    if not results:
        raise ValueError(f"no result.json is below {', '.join(dirs)}")
    return results


def check_result(result: dict) -> None:
    """Raise ``TypeError`` or ``KeyError`` unless what the table shows of a result is there, as a name or a number."""
    check_plain(result)
    names = [result[key] for key in ("model", "dataset", "kind")] + [headline(result)]
    names += [result["run"]] if result.get("run") is not None else []
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is no name")
    if not isinstance(result.get("recipe"), (dict, type(None))):
        raise TypeError("its recipe is no dict")
    try:
        check_plain(result.get("recipe"), max_values=MOST_SETTINGS)
    except ValueError:
        raise ValueError(f"its recipe holds more than {MOST_SETTINGS:,} values") from None
    for key in ("launch", "epochs"):
        if result.get(key) is not None and not is_count(result[key]):
            raise TypeError(f"its {key} is {result[key]!r}, no number")
    if not isinstance(result.get("seed"), (int, type(None))):
        raise TypeError(f"its seed is {result['seed']!r}, no number")
    numbers = [result.get("parameters", 0)]
    for values in (result["last"], result.get("best") or {}):
        numbers += [values.get(headline(result)) or 0, values.get("real/top1") or 0]
    for number in numbers:
        if not isinstance(number, (int, float)) or abs(number) > 1e15:
            raise TypeError(f"{number!r} is no figure")


def headline(result: dict) -> str:
    """The metric that sums the task up."""
    return (result.get("headline") or {}).get("metric", "top1")


def shown_in_table(name: str) -> str:
    """A name as it stands in a cell of a Markdown table."""
    return sanitized(name, 80).replace("|", "\\|")


class Entry(NamedTuple):
    """A figure of a run: where it stands in the table, and what it counts against others of the same run."""

    row: str  # dataset and kind
    model: str
    recipe: dict[str, str]
    seed: int | str | None
    run: int | str | None  # by its name, or by its seed where it has none
    value: float
    # A test of its own counts before the training's own evaluation, then a later launch and epoch before others.
    rank: tuple[bool, int, int]
    finished: bool
    aside: bool


def table(results: list[dict], figure: str = "last") -> str:
    """The Markdown tables of results, one a headline, with notes on what is unfinished."""
    metrics = sorted({headline(result) for result in results}, key=lambda name: (name != "top1", name))
    parts = [_table(name, [r for r in results if headline(r) == name], figure) for name in metrics]
    notes = ["In brackets: the paper's figure (Table 1). Several runs: mean (smallest to largest, number)."]
    if any(not result.get("finished", True) for result in results):
        notes.append("\\* not trained to the end.")
    return "\n\n".join([*parts, "\n".join(notes)])


def _table(metric: str, results: list[dict], figure: str) -> str:
    costs = {result["model"]: result.get("parameters", 0) for result in results}
    trainings = sorted((result for result in results if "checkpoint" not in result), key=_progress)
    trained = {result["run"]: result for result in trainings if result.get("run")}
    entries = [entry for result in results for entry in _entries(result, trained, metric, figure)]
    cells: dict[tuple[str, str], dict] = {}
    for entry, label in zip(entries, _labels(entries)):
        cell = cells.setdefault((f"{entry.row}{label}", entry.model), {})
        if entry.run not in cell or entry.rank >= cell[entry.run].rank:
            cell[entry.run] = entry
    for cell in cells.values():
        in_place = {entry.seed for entry in cell.values() if not entry.aside}
        for run in [run for run, entry in cell.items() if entry.aside and entry.seed in in_place]:
            del cell[run]
    models = sorted({model for _, model in cells}, key=_rank(MODELS))
    rows = sorted({row for row, _ in cells}, key=_rank(tuple(PAPER)))
    name = "top-1, %" if metric == "top1" else shown_in_table(metric)
    lines = [f"| {name} | " + " | ".join(map(title, models)) + " |", "|---" * (len(models) + 1) + "|"]
    lines.append("| parameters, M | " + " | ".join(f"{costs[m] / 1e6:.2f}" for m in models) + " |")
    for row in rows:
        paper = PAPER.get(row.partition(" (")[0]) if metric == "top1" else None
        row_cells = [_cell(cells.get((row, model)), paper, model) for model in models]
        lines.append(f"| {row} | " + " | ".join(row_cells) + " |")
    return "\n".join(lines)


def _entries(result: dict, trained: dict[str, dict], metric: str, figure: str) -> list[Entry]:
    """The figures of a result: one, or with ImageNet ReaL two. A test takes seed and recipe from its run's training."""
    training = trained.get(result.get("run") or "", result)
    kind = result["kind"] + (", flip" if result.get("tta") else "")
    values = result.get(figure) or result["last"]
    found = [(result["dataset"], values.get(metric)), (f"{result['dataset']} ReaL", values.get("real/top1"))]
    entries = []
    for dataset, value in found:
        if value is None:
            continue
        as_in_paper = dataset in PAPER and kind == PAPER_KIND.get(dataset, "fine-tuning")
        row = dataset if as_in_paper else f"{dataset}, {kind}"
        seed = training.get("seed") if training.get("seed") is not None else result.get("run")
        recipe = _flat(result.get("recipe") or training.get("recipe") or {})
        run, of_training = result.get("run") or seed, (training.get("finished", True), training["aside"])
        entries.append(Entry(row, result["model"], recipe, seed, run, value, _progress(result), *of_training))
    return entries


def _progress(result: dict) -> tuple[bool, int, int]:
    """Whether a result is of a test, and the launch and the epoch that it is of."""
    return "checkpoint" in result, result.get("launch") or 0, result.get("epochs") or 0


def _flat(recipe: Any, name: str = "") -> dict[str, str]:
    """A recipe's settings by their dotted names."""
    if not isinstance(recipe, dict):
        return {name: json.dumps(recipe)}
    return {k: v for key, inner in recipe.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _labels(entries: list[Entry]) -> list[str]:
    """For each entry in what its recipe differs from others of its row and model: '' where in nothing."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.row, entry.model), []).append(entry)
    for group in groups.values():
        # Each seed may have a pretraining of its own; two for one seed are two recipes.
        started = {(entry.seed, entry.recipe.get(STARTED)) for entry in group}
        if len(started) == len({seed for seed, _ in started}):
            for entry in group:
                entry.recipe.pop(STARTED, None)
    keys = {place: _differing([entry.recipe for entry in group]) for place, group in groups.items()}
    labels = []
    meant: dict[tuple[str, str, str], dict[str, str]] = {}
    for entry in entries:
        names = keys[entry.row, entry.model][:MOST_SAID]
        said = [f"{key.rpartition('.')[2]} {entry.recipe.get(key, 'not told')}" for key in names]
        label = f" ({shown_in_table(', '.join(said))})" if said else ""
        if meant.setdefault((entry.row, entry.model, label), entry.recipe) != entry.recipe:
            label += f" {zlib.crc32(json.dumps(entry.recipe, sort_keys=True).encode()):08x}"
        labels.append(label)
    return labels


def _differing(recipes: list[dict[str, str]]) -> list[str]:
    """The settings in which recipes differ, by name."""
    return sorted(key for key in set().union(*recipes) if len({recipe.get(key) for recipe in recipes}) > 1)


def title(model: str) -> str:
    """'CRATE-Tiny' for 'crate_tiny'."""
    family, _, size = model.partition("_")
    return f"{TITLES.get(family, family)}-{size.title() if model in MODELS else size}"


def _cell(cell: dict | None, paper: tuple[float, ...] | None, model: str) -> str:
    published = f"({paper[MODELS.index(model)]})" if paper and model in MODELS else ""
    if not cell:
        return published
    values = [entry.value for entry in cell.values()]
    text = f"{sum(values) / len(values):.2f}"
    if len(values) > 1:
        text += f" ({min(values):.2f} to {max(values):.2f}, {len(values)})"
    star = "" if all(entry.finished for entry in cell.values()) else "\\*"
    return f"{text}{star} {published}".strip()


def _rank(order: tuple[str, ...]):
    return lambda name: (order.index(name) if name in order else len(order), name)


if __name__ == "__main__":
    main()

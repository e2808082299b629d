"""Turn the result files of many runs into the layout of the paper's Table 1, in Markdown.

python tools/results_table.py work_dirs
python tools/results_table.py work_dirs/pets work_dirs/cifar10 --figure best

Rows are datasets, columns are models. A cell has the task's headline metric (for classifiers, top-1 accuracy in %): the
mean over the runs and, for several runs, their minimum and maximum. The paper's value, if there is one, follows in
parentheses. Runs with recipes that differ in more than the seed are in separate rows, labeled with the difference. If a
run was tested separately, the test's metrics are used. There is one table for each headline metric.

If several runs have the same recipe and seed, all of them are included, except a run that was moved to before_<time>
and replaced by another run.
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
START_KEY = "initialized_from"
MAX_LABEL_SETTINGS = 4  # in the label of a row
MAX_RECIPE_VALUES = 20_000  # typical: some hundreds
MAX_RESULT_BYTES = 2**22  # typical: a few kilobytes
MOVED = re.compile(r"before_\d{8}_\d{6}(_\d+)?")  # a directory of results that a later run has moved
# The paper's use of a dataset (default: fine-tuning); a run of another kind is in a separate row.
PAPER_KIND = {"ImageNet": "from scratch", "ImageNet ReaL": "from scratch"}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="directories to search recursively for result.json")
    parser.add_argument(
        "--figure",
        choices=["last", "best"],
        default="last",
        help="metrics of the last or the best epoch of a training run (default: last); the best epoch was selected on "
        "the evaluation images",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        say(*table(read_results(args.dirs), args.figure).split("\n"))


def read_results(dirs: list[str]) -> list[dict]:
    """Read every ``result.json`` below the directories.

    Raises:
        ValueError: a directory is missing, there is no result file, or a file is not a result file of crate_mm.
    """
    results = []
    for folder in map(Path, dirs):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a directory")
        for file in sorted(folder.rglob("result.json")):
            try:
                result = read_json(read_regular(file, MAX_RESULT_BYTES))
                check_result(result)
                result.update({key: to_cell(result[key]) for key in ("model", "dataset", "kind")})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{file} is not a result file of crate_mm: {sanitized(error)}") from None
            moved = any(map(MOVED.fullmatch, file.relative_to(folder).parts[:-1]))
            results.append({**result, "file": file, "moved": moved})
    if not results:
        raise ValueError(f"found no result.json below {', '.join(dirs)}")
    return results


def check_result(result: dict) -> None:
    """Raise ``TypeError``, ``KeyError`` or ``ValueError`` if a value that the table needs is missing or malformed."""
    check_plain(result)
    names = [result[key] for key in ("model", "dataset", "kind")] + [headline(result)]
    names += [result["run"]] if result.get("run") is not None else []
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"expected a string, got {name!r}")
    if not isinstance(result.get("recipe"), (dict, type(None))):
        raise TypeError("its recipe is not a dict")
    try:
        check_plain(result.get("recipe"), max_values=MAX_RECIPE_VALUES)
    except ValueError:
        raise ValueError(f"its recipe holds more than {MAX_RECIPE_VALUES:,} values") from None
    for key in ("launch", "epochs"):
        if result.get(key) is not None and not is_count(result[key]):
            raise TypeError(f"expected a number for {key}, got {result[key]!r}")
    if not isinstance(result.get("seed"), (int, type(None))):
        raise TypeError(f"expected a number for seed, got {result['seed']!r}")
    numbers = [result.get("parameters", 0)]
    for values in (result["last"], result.get("best") or {}):
        numbers += [values.get(headline(result)) or 0, values.get("real/top1") or 0]
    for number in numbers:
        if not isinstance(number, (int, float)) or abs(number) > 1e15:
            raise TypeError(f"expected a number of at most 1e15, got {number!r}")


def headline(result: dict) -> str:
    """Return the name of the task's headline metric."""
    return (result.get("headline") or {}).get("metric", "top1")


def to_cell(name: str) -> str:
    """Escape a name for a cell of a Markdown table."""
    return sanitized(name, 80).replace("|", "\\|")


class Entry(NamedTuple):
    """A value of a run, its place in the table, and its rank among the values of the same run."""

    row: str  # dataset and kind
    model: str
    recipe: dict[str, str]
    seed: int | str | None
    run: int | str | None  # the run's name, or else its seed
    value: float
    # A separate test outranks the training's own evaluation; then the later launch and the later epoch win.
    rank: tuple[bool, int, int]
    finished: bool
    moved: bool


def table(results: list[dict], figure: str = "last") -> str:
    """Return a Markdown table of results per headline metric, with notes."""
    metrics = sorted({headline(result) for result in results}, key=lambda name: (name != "top1", name))
    parts = [_table(name, [r for r in results if headline(r) == name], figure) for name in metrics]
    notes = ["In parentheses: the paper's value (Table 1). Several runs: mean (minimum to maximum, number of runs)."]
    if any(not result.get("finished", True) for result in results):
        notes.append("\\* training did not finish.")
    return "\n\n".join([*parts, "\n".join(notes)])


def _table(metric: str, results: list[dict], figure: str) -> str:
    costs = {result["model"]: result.get("parameters", 0) for result in results}
    trainings = sorted((result for result in results if "checkpoint" not in result), key=_progress)
    training_of = {result["run"]: result for result in trainings if result.get("run")}
    entries = [entry for result in results for entry in _entries(result, training_of, metric, figure)]
    cells: dict[tuple[str, str], dict] = {}
    for entry, label in zip(entries, _labels(entries)):
        cell = cells.setdefault((f"{entry.row}{label}", entry.model), {})
        if entry.run not in cell or entry.rank >= cell[entry.run].rank:
            cell[entry.run] = entry
    for cell in cells.values():
        seeds = {entry.seed for entry in cell.values() if not entry.moved}
        for run in [run for run, entry in cell.items() if entry.moved and entry.seed in seeds]:
            del cell[run]
    models = sorted({model for _, model in cells}, key=_rank(MODELS))
    rows = sorted({row for row, _ in cells}, key=_rank(tuple(PAPER)))
    name = "top-1, %" if metric == "top1" else to_cell(metric)
    lines = [f"| {name} | " + " | ".join(map(title, models)) + " |", "|---" * (len(models) + 1) + "|"]
    lines.append("| parameters, M | " + " | ".join(f"{costs[m] / 1e6:.2f}" for m in models) + " |")
    for row in rows:
        paper = PAPER.get(row.partition(" (")[0]) if metric == "top1" else None
        row_cells = [_cell(cells.get((row, model)), paper, model) for model in models]
        lines.append(f"| {row} | " + " | ".join(row_cells) + " |")
    return "\n".join(lines)


def _entries(result: dict, training_of: dict[str, dict], metric: str, figure: str) -> list[Entry]:
    """Return the entries of a result: one, or two with ImageNet ReaL.

    A test takes seed and recipe from its run's training.
    """
    training = training_of.get(result.get("run") or "", result)
    kind = result["kind"] + (", flip" if result.get("tta") else "")
    values = result.get(figure) or result["last"]
    by_dataset = {result["dataset"]: values.get(metric), f"{result['dataset']} ReaL": values.get("real/top1")}
    entries = []
    for dataset, value in by_dataset.items():
        if value is None:
            continue
        as_in_paper = dataset in PAPER and kind == PAPER_KIND.get(dataset, "fine-tuning")
        row = dataset if as_in_paper else f"{dataset}, {kind}"
        seed = training.get("seed") if training.get("seed") is not None else result.get("run")
        recipe = _flat(result.get("recipe") or training.get("recipe") or {})
        run, training_state = result.get("run") or seed, (training.get("finished", True), training["moved"])
        entries.append(Entry(row, result["model"], recipe, seed, run, value, _progress(result), *training_state))
    return entries


def _progress(result: dict) -> tuple[bool, int, int]:
    """Return the rank of a result: (whether it comes from a test, its launch, its epoch)."""
    return "checkpoint" in result, result.get("launch") or 0, result.get("epochs") or 0


def _flat(recipe: Any, name: str = "") -> dict[str, str]:
    """Return a recipe's settings by dotted name."""
    if not isinstance(recipe, dict):
        return {name: json.dumps(recipe)}
    return {k: v for key, inner in recipe.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _labels(entries: list[Entry]) -> list[str]:
    """Return each entry's label: the settings in which recipes of its row and model differ, or ''."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.row, entry.model), []).append(entry)
    for group in groups.values():
        # Each seed may have its own pretraining; two pretrainings for one seed are two recipes.
        starts = {(entry.seed, entry.recipe.get(START_KEY)) for entry in group}
        if len(starts) == len({seed for seed, _ in starts}):
            for entry in group:
                entry.recipe.pop(START_KEY, None)
    keys = {place: _differing([entry.recipe for entry in group]) for place, group in groups.items()}
    labels = []
    recipes: dict[tuple[str, str, str], dict[str, str]] = {}
    for entry in entries:
        names = keys[entry.row, entry.model][:MAX_LABEL_SETTINGS]
        settings = [f"{key.rpartition('.')[2]} {entry.recipe.get(key, 'unknown')}" for key in names]
        label = f" ({to_cell(', '.join(settings))})" if settings else ""
        if recipes.setdefault((entry.row, entry.model, label), entry.recipe) != entry.recipe:
            label += f" {zlib.crc32(json.dumps(entry.recipe, sort_keys=True).encode()):08x}"
        labels.append(label)
    return labels


def _differing(recipes: list[dict[str, str]]) -> list[str]:
    """Return the names of the settings in which recipes differ."""
    return sorted(key for key in set().union(*recipes) if len({recipe.get(key) for recipe in recipes}) > 1)


def title(model: str) -> str:
    """Return a model's title, such as 'CRATE-Tiny' for 'crate_tiny'."""
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

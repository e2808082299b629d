"""Turn the result files of many runs into the layout of the paper's Table 1, in Markdown.

python tools/results_table.py work_dirs
python tools/results_table.py work_dirs/pets work_dirs/cifar10 --figure best

A row is a dataset, a column a model. A cell has the top-1 accuracy in %: the mean over the seeds, with their smallest
and largest, then the paper's figure in brackets where it has one. A run that was tested counts with the test's figure.
"""

import argparse
from pathlib import Path

from ..untrusted import check_plain, read_json, read_regular, shown
from .options import one_sentence_errors

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
TITLES = {"crate": "CRATE", "vit": "ViT"}
MOST_BYTES = 2**22  # of a result file, which has a few kilobytes
# How a dataset is used in the paper; a run of another kind gets a row of its own.
PAPER_KIND = {"ImageNet": "from scratch", "ImageNet ReaL": "from scratch"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    with one_sentence_errors():
        print(table(read_results(args.dirs), args.figure))


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
                raise ValueError(f"{file} is not a result file of crate_mm: {shown(error)}") from None
            results.append({**result, "file": file})
    if not results:
        raise ValueError(f"no result.json is below {', '.join(dirs)}")
    return results


def check_result(result: dict) -> None:
    """Raise ``TypeError`` or ``KeyError`` unless what the table shows of a result is there, as a name or a number."""
    check_plain(result)
    for key in ("model", "dataset", "kind"):
        if not isinstance(result[key], str):
            raise TypeError(f"its {key} is {result[key]!r}, no name")
    if not isinstance(result.get("seed"), (int, type(None))):
        raise TypeError(f"its seed is {result['seed']!r}, no number")
    numbers = [result.get("parameters", 0)]
    for figures in (result["last"], result.get("best") or {}):
        numbers += [figures.get("top1") or 0, figures.get("real/top1") or 0]
    for number in numbers:
        if not isinstance(number, (int, float)) or abs(number) > 1e15:
            raise TypeError(f"{number!r} is no figure")


def shown_in_table(name: str) -> str:
    """A name as it stands in a cell of a Markdown table."""
    return shown(name, 80).replace("|", "\\|")


def table(results: list[dict], figure: str = "last") -> str:
    """The Markdown table of results, with notes on what is unfinished."""
    cells: dict[tuple[str, str], dict] = {}
    costs: dict[str, float] = {}
    for result in results:
        costs[result["model"]] = result.get("parameters", 0)
        kind = result["kind"] + (", flip" if result.get("tta") else "")
        tested = "checkpoint" in result  # a test of its own counts before the training's own evaluation
        for dataset, top1 in figures(result, figure):
            as_in_paper = dataset in PAPER and kind == PAPER_KIND.get(dataset, "fine-tuning")
            row = dataset if as_in_paper else f"{dataset}, {kind}"
            cell = cells.setdefault((row, result["model"]), {})
            seed = result.get("seed")
            if seed not in cell or tested >= cell[seed][1]:
                cell[seed] = (top1, tested, result.get("finished", True))
    models = sorted({model for _, model in cells}, key=_rank(MODELS))
    rows = sorted({row for row, _ in cells}, key=_rank(tuple(PAPER)))
    lines = ["| top-1, % | " + " | ".join(map(title, models)) + " |", "|---" * (len(models) + 1) + "|"]
    lines.append("| parameters, M | " + " | ".join(f"{costs[m] / 1e6:.2f}" for m in models) + " |")
    for row in rows:
        row_cells = [_cell(cells.get((row, model)), PAPER.get(row), model) for model in models]
        lines.append(f"| {row} | " + " | ".join(row_cells) + " |")
    lines.append("")
    lines.append("In brackets: the paper's figure (Table 1). Several seeds: mean (smallest to largest, number).")
    if any(not finished for cell in cells.values() for _, _, finished in cell.values()):
        lines.append("\\* not trained to the end.")
    return "\n".join(lines)


def figures(result: dict, figure: str) -> list[tuple[str, float]]:
    """The datasets and accuracies of a result: one, or with ImageNet ReaL two."""
    values = result.get(figure) or result["last"]
    found = [(result["dataset"], values.get("top1")), (f"{result['dataset']} ReaL", values.get("real/top1"))]
    return [(dataset, top1) for dataset, top1 in found if top1 is not None]


def title(model: str) -> str:
    """'CRATE-Tiny' for 'crate_tiny'."""
    family, _, size = model.partition("_")
    return f"{TITLES.get(family, family)}-{size.title() if model in MODELS else size}"


def _cell(cell: dict | None, paper: tuple[float, ...] | None, model: str) -> str:
    published = f"({paper[MODELS.index(model)]})" if paper and model in MODELS else ""
    if not cell:
        return published
    values = [top1 for top1, _, _ in cell.values()]
    text = f"{sum(values) / len(values):.2f}"
    if len(values) > 1:
        text += f" ({min(values):.2f} to {max(values):.2f}, {len(values)})"
    star = "" if all(finished for _, _, finished in cell.values()) else "\\*"
    return f"{text}{star} {published}".strip()


def _rank(order: tuple[str, ...]):
    return lambda name: (order.index(name) if name in order else len(order), name)


if __name__ == "__main__":
    main()

"""Files that an evaluation leaves: predictions, accuracy by class, confusion matrix.

Each takes the rows that ``ClassificationMetric.samples`` holds, one a sample, and the class names. A name that a
spreadsheet would take for a formula has an apostrophe before it in the CSV files.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..io.files import atomic_file
from ..io.untrusted import sanitized, spreadsheet_cell
from .metrics import confusion_matrix, per_class_accuracy

# With more classes than this a picture has no room for their names, or for the numbers in its cells.
MAX_NAMED, MAX_NUMBERED = 60, 20


def write_predictions(
    file: str | Path, samples: dict[str, Tensor], names: list[str], path: Callable[[int], str]
) -> None:
    """Write a row a sample as CSV: its position, image, label, the likeliest classes and their probabilities.

    Args:
        path: names the image at a position. Samples without a label leave that column empty.
    """
    cells = [spreadsheet_cell(name) for name in names]
    ranks = range(1, samples["top"].shape[1] + 1)
    with atomic_file(file, text=True) as opened:
        writer = csv.writer(opened)
        writer.writerow(["sample_idx", "image", "label", *(f"top{r}" for r in ranks), *(f"score{r}" for r in ranks)])
        rows = zip(*(samples[key].tolist() for key in ("sample_idx", "label", "top", "score")))
        for position, label, top, score in rows:
            label = cells[label] if label >= 0 else ""
            image = spreadsheet_cell(path(position))
            writer.writerow([position, image, label, *(cells[c] for c in top), *score])


def write_per_class(file: str | Path, samples: dict[str, Tensor], names: list[str]) -> None:
    """Write a row a class as CSV: number, name, number of samples, top-1 accuracy in % (empty without samples)."""
    accuracy, count = per_class_accuracy(samples, len(names))
    with atomic_file(file, text=True) as opened:
        writer = csv.writer(opened)
        writer.writerow(["class", "name", "samples", "top1"])
        for number, (name, n, top1) in enumerate(zip(names, count.tolist(), accuracy.tolist())):
            writer.writerow([number, spreadsheet_cell(name), n, top1 if n else ""])


def write_confusion(prefix: str | Path, samples: dict[str, Tensor], names: list[str]) -> None:
    """Write ``<prefix>.csv``, the counts with a row a true class, and ``<prefix>.png``, each row's shares in %."""
    matrix = confusion_matrix(samples, len(names))
    with atomic_file(f"{prefix}.csv", text=True) as opened:
        writer = csv.writer(opened)
        cells = [spreadsheet_cell(name) for name in names]
        writer.writerow(["label \\ predicted", *cells])
        writer.writerows([name, *row] for name, row in zip(cells, matrix.tolist()))
    _plot_confusion(f"{prefix}.png", matrix, names)


def _plot_confusion(file: str, matrix: Tensor, names: list[str]) -> None:
    # The figure is made without pyplot, whose global state would hold it, and which looks for a display.
    from matplotlib.figure import Figure

    total = matrix.sum(1, keepdim=True)
    share = torch.where(total > 0, 100 * matrix / total, torch.nan)
    n = len(names)
    side = min(max(4.5, 0.42 * n + 2.5), 14)
    figure = Figure(figsize=(side * 1.12, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if n <= MAX_NAMED:
        labels = [sanitized(name, 40) for name in names]
        plain = {"parse_math": False}  # a class may be named $
        axes.set_xticks(range(n), labels, rotation=60, ha="right", rotation_mode="anchor", **plain)
        axes.set_yticks(range(n), labels, **plain)
    if n <= MAX_NUMBERED:
        for row in range(n):
            for column in range(n):
                value = share[row, column].item()
                if value > 0:
                    text = f"{value:.0f}" if value >= 0.95 else f"{value:.1f}".lstrip("0")
                    color = "white" if value > 55 else "black"
                    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{int(matrix.diagonal().sum())} of {int(matrix.sum())} right")
    figure.colorbar(image, ax=axes, label="share of the true class, %", shrink=0.8)
    with atomic_file(file) as opened:
        figure.savefig(opened, dpi=150, format="png")

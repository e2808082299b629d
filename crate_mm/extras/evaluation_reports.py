"""Files that an evaluation writes: predictions, per-class accuracy, confusion matrix.

The functions take ``ClassificationMetric.samples``, with one row per sample, and the class names. In the CSV files, a
name that a spreadsheet would read as a formula is prefixed with an apostrophe.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..evaluation.metrics import confusion_matrix, per_class_accuracy
from ..io.files import atomic_file
from ..io.untrusted import sanitized, spreadsheet_cell

# A plot has room for the names of at most MAX_NAMED classes, and for numbers in the cells of at most MAX_NUMBERED.
MAX_NAMED, MAX_NUMBERED = 60, 20


def write_predictions(
    file: str | Path, samples: dict[str, Tensor], names: list[str], path: Callable[[int], str]
) -> None:
    """Write a CSV row per sample: position, image, label (empty if missing), most likely classes and probabilities.

    Args:
        path: returns the name of the image at a position.
    """
    cells = [spreadsheet_cell(name) for name in names]
    ranks = range(1, samples["top"].shape[1] + 1)
    with atomic_file(file, text=True) as csv_file:
        writer = csv.writer(csv_file)
        writer.writerow(["sample_idx", "image", "label", *(f"top{r}" for r in ranks), *(f"score{r}" for r in ranks)])
        rows = zip(*(samples[key].tolist() for key in ("sample_idx", "label", "top", "score")))
        for position, label, top, score in rows:
            label = cells[label] if label >= 0 else ""
            image = spreadsheet_cell(path(position))
            writer.writerow([position, image, label, *(cells[c] for c in top), *score])


def write_per_class(file: str | Path, samples: dict[str, Tensor], names: list[str]) -> None:
    """Write a CSV row per class: index, name, number of samples, top-1 accuracy in % (empty without samples)."""
    accuracy, count = per_class_accuracy(samples, len(names))
    with atomic_file(file, text=True) as csv_file:
        writer = csv.writer(csv_file)
        writer.writerow(["class", "name", "samples", "top1"])
        for number, (name, n, top1) in enumerate(zip(names, count.tolist(), accuracy.tolist())):
            writer.writerow([number, spreadsheet_cell(name), n, top1 if n else ""])


def write_confusion(prefix: str | Path, samples: dict[str, Tensor], names: list[str]) -> None:
    """Write ``<prefix>.csv``, the counts with one row per true class, and ``<prefix>.png``, row percentages."""
    matrix = confusion_matrix(samples, len(names))
    with atomic_file(f"{prefix}.csv", text=True) as csv_file:
        writer = csv.writer(csv_file)
        cells = [spreadsheet_cell(name) for name in names]
        writer.writerow(["label \\ predicted", *cells])
        writer.writerows([name, *row] for name, row in zip(cells, matrix.tolist()))
    _plot_confusion(f"{prefix}.png", matrix, names)


def _plot_confusion(file: str, matrix: Tensor, names: list[str]) -> None:
    # pyplot would keep the figure in its global state and look for a display.
    from matplotlib.figure import Figure

    total = matrix.sum(1, keepdim=True)
    percent = torch.where(total > 0, 100 * matrix / total, torch.nan)
    n = len(names)
    side = min(max(4.5, 0.42 * n + 2.5), 14)
    figure = Figure(figsize=(side * 1.12, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if n <= MAX_NAMED:
        labels = [sanitized(name, 40) for name in names]
        options = {"parse_math": False}  # a class may be named $
        axes.set_xticks(range(n), labels, rotation=60, ha="right", rotation_mode="anchor", **options)
        axes.set_yticks(range(n), labels, **options)
    if n <= MAX_NUMBERED:
        for row in range(n):
            for column in range(n):
                value = percent[row, column].item()
                if value > 0:
                    text = f"{value:.0f}" if value >= 0.95 else f"{value:.1f}".lstrip("0")
                    color = "white" if value > 55 else "black"
                    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{int(matrix.diagonal().sum())} of {int(matrix.sum())} correct")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    with atomic_file(file) as png_file:
        figure.savefig(png_file, dpi=150, format="png")

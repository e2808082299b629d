"""Measures by layer; the paper, Figures 3, 4 and 5."""

import argparse

import numpy as np
from matplotlib.figure import Figure as MplFigure

from ...io.untrusted import sanitized, spreadsheet_cell
from ...registry import FIGURES
from ..gather import LayerRow, measure_layers
from ..table import MEASURES, check_measures
from ..taps import name_of
from .base import Figure, FigureInput, FigureOutput, legend, run_batches, sample_positions
from .style import columns_of, layer_axis, sheet


@FIGURES.register_module("layers")
class Layers(Figure):
    """Measures by layer: one panel per measure, one curve per subject."""

    help = "R^c, sparsity and other measures by layer, with the spread over samples (Figures 3, 4, 5)"
    accepts_many = True

    @staticmethod
    def plot(curves: dict[str, list[LayerRow]], measures: list[str]) -> MplFigure:  # ``LayerMeasures`` calls it
        return plot_layers(curves, measures)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--num-images", type=int, default=1000, help="number of images (default: 1000)")
        parser.add_argument("--eps-squared", type=float, default=0.01, help="eps^2 of the coding rates (default: 0.01)")
        parser.add_argument("--raw-length", action="store_true", help="do not scale tokens to unit length")
        parser.add_argument("--measures", nargs="+", metavar="MEASURE", default=["rc_half", "sparsity", "active"])

    def choose(self, total: int, options: argparse.Namespace) -> list[int]:
        return sample_positions(total, options.num_images, options.seed)

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        check_measures(options.measures)
        curves: dict[str, list[LayerRow]] = {}
        for subject in subjects:
            with measure_layers(subject.model, options.layers, options.eps_squared, not options.raw_length) as measures:
                run_batches(subject.model, subject.batches)
            curves[subject.label] = measures.rows()
        table = [["curve", "measure", "meaning", "layer", "mean", "std", "images"]]
        for label, rows in curves.items():
            head = spreadsheet_cell(label)
            table += [[head, r.measure, MEASURES[r.measure].meaning, r.layer, r.mean, r.std, r.count] for r in rows]
        defined = {row.measure for rows in curves.values() for row in rows}
        name = name_of(subjects[0].model)
        if not defined & set(options.measures):
            choices = ", ".join(measure for measure in MEASURES if measure in defined)
            if not choices:
                raise ValueError(
                    f"no input reached the layers of {name}: tensor() of {type(subjects[0].model).__name__} must run "
                    "its backbone"
                )
            raise ValueError(f"{name} has none of the measures {', '.join(options.measures)}: choose from {choices}")
        note = ""
        if "rc_half" in options.measures and "rc_half" not in defined:
            note = f"{name} has no subspaces: R^c is not defined"
            if "active" in options.measures and "active" in defined and "sparsity" not in defined:
                note += "; the fraction of positive MLP activations replaces sparsity"
        return FigureOutput({"layers": plot_layers(curves, options.measures)}, {"layers.csv": table}, note)


def plot_layers(curves: dict[str, list[LayerRow]], measures: list[str], band: bool = True) -> MplFigure:
    """Plot measures by layer: one panel per measure, one line per curve, a band of one standard deviation over samples.

    Args:
        curves: rows of ``LayerMeasures`` by label.
        measures: measures to plot; measures without data are omitted.
        band: whether to draw the band.
    """
    present = [m for m in measures if any(row.measure == m for rows in curves.values() for row in rows)]
    columns = columns_of(len(present), 3)
    rows = -(-len(present) // columns)
    figure = sheet(4.6 * columns, 3.6 * rows, text=0.6 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(present) :]:
        axes.remove()
    for axes, measure in zip(panels, present):
        for number, (label, rows) in enumerate(curves.items()):
            points = [row for row in rows if row.measure == measure]
            if not points:
                continue
            layer, mean, std = (np.array([getattr(row, key) for row in points]) for key in ("layer", "mean", "std"))
            color = f"C{number % 10}"
            axes.plot(layer, mean, marker="o", color=color, label=sanitized(label, 60))
            if band:
                axes.fill_between(layer, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        axes.set_title(MEASURES[measure].title, fontsize="medium")
        layers = [row.layer for rows in curves.values() for row in rows if row.measure == measure]
        layer_axis(axes, min(layers), max(layers))
        axes.tick_params(labelsize="x-small")
        axes.grid(alpha=0.3)
    if len(curves) > 1:  # file name and title identify a single curve
        legend(panels[0], fontsize="x-small")
    return figure

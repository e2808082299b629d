"""Curves of runs and schedules: one panel per value, one line per run."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import MaxNLocator

from .sheet import PLAIN, drawable
from .style import InlineFigure

COLORS = ("#1f6fb4", "#d95f02", "#2a9d5c", "#8e44ad", "#c0392b", "#7f6a4f", "#e377a2", "#5f6368", "#a6a61d", "#17a2b8")
STYLES = ("-", "--", ":", "-.")
MAX_MARKED = 40  # lines with more points have no markers


def plot_curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x: Mapping[str, str]
) -> MplFigure:
    """Plot one panel per value, with one line per run.

    Args:
        panels: ``{value: {run: (iterations or epochs, values)}}``.
        x: ``{value: label of the horizontal axis}``.
    """
    runs = list(dict.fromkeys(run for lines in panels.values() for run in lines))
    columns = 1 if len(panels) <= 3 else 2
    rows = math.ceil(len(panels) / columns)
    below = 0.3 * math.ceil(len(runs) / 3) if len(runs) > 1 else 0
    figure = InlineFigure(figsize=(8 * columns, 3.1 * rows + below + 0.35), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.04)
    grid = figure.subplots(rows, columns, squeeze=False)
    handles = {}
    for axes, (name, lines) in zip(grid.flat, panels.items()):
        for run, (steps, values) in lines.items():
            number = runs.index(run)
            style = {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}
            marker = "o" if len(values) <= MAX_MARKED else None
            (handles[run],) = axes.plot(steps, values, linewidth=1.6, marker=marker, markersize=3.5, **style)
        _tidy(axes, name, x[name])
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    if len(runs) > 1:
        labels = [drawable(run)[:60] for run in runs]
        legend = figure.legend(
            [handles[run] for run in runs], labels, loc="outside lower center", ncols=min(len(runs), 3), frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_size(9)
    return figure


def _tidy(axes, name: str, x: str) -> None:
    axes.set_title(drawable(name), loc="left", fontsize=10.5, family=PLAIN, parse_math=False)
    axes.set_xlabel(x, fontsize=9, color="#5f6368")
    axes.grid(True, color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b4b8")
    axes.tick_params(labelsize=9, color="#b0b4b8", labelcolor="#3c4043")
    axes.margins(x=0.02)
    low, high = axes.get_ylim()
    if np.isfinite([low, high]).all() and 0 < high < 1e-2:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.yaxis.get_offset_text().set_size(9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10]))

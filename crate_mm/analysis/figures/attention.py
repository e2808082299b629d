"""The CLS token's attention over images."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as MplFigure
from torch import Tensor

from ...io.untrusted import sanitized, shortened
from ...registry import FIGURES
from ..attention import cls_attention, pooling
from ..taps import name_of
from .base import Figure, FigureInput, FigureOutput, patch_layout, preprocessed, without_ticks
from .overlay import attention_bar, over_gray, scale_end, spread_of
from .style import sheet


@FIGURES.register_module("attention")
class Attention(Figure):
    """CLS attention over each image, by layer and head, and the mean of the heads."""

    help = "CLS attention over images, by layer and head"
    input_kind = "images"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--interpolation",
            choices=["bilinear", "nearest"],
            default="nearest",
            help="interpolation between patches (default: nearest)",
        )

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        inputs = preprocessed(subject)
        attention = cls_attention(subject.model, inputs, options.layers)
        layout = patch_layout(subject.model, inputs)
        tokens = 1 + layout.rows * layout.columns
        end = scale_end((tokens * a.float().cpu() for a in attention.values()), tokens)
        pictures, numbers = {}, {}
        for i, (name, picture) in enumerate(zip(subject.names, subject.pictures)):
            maps = {layer + 1: a[i].unflatten(-1, layout[1:]).float().cpu() for layer, a in attention.items()}
            numbers |= {f"{i}_layer_{layer}": m.numpy() for layer, m in maps.items()}
            title = f"{name_of(subject.model)}: the CLS token's attention, {Path(name).name}"
            plot = plot_attention(picture, maps, end, title, options.interpolation)
            pictures[f"attention_{i}_{shortened(Path(name).stem)}"] = plot
        note = ""
        if pooling(subject.model) == "mean":
            note = (
                "the head predicts from the mean of all tokens: the CLS token's attention does not explain the "
                "prediction"
            )
        return FigureOutput(pictures, {"attention.npz": numbers}, note)


def plot_attention(
    image: np.ndarray, maps: dict[int, Tensor], end: float, title: str, interpolation: str = "nearest"
) -> MplFigure:
    """Plot an image and its CLS attention on one scale: one row per layer; columns for the heads' mean and each head.

    Below each map stands ``exp(entropy)``, the number of tokens over which the attention is spread.

    Args:
        image: ``(H, W, 3)`` of uint8.
        maps: ``{layer from 1: (heads, rows, columns)}``.
        end: of the scale, in multiples of uniform attention.
        title: of the figure.
        interpolation: between patches, 'bilinear' or 'nearest'.
    """
    heads, (H, W) = max(len(m) for m in maps.values()), image.shape[:2]
    tokens = 1 + next(iter(maps.values()))[0].numel()
    side = 1.15
    figure = sheet(side * (heads + 3) + 1.1, (side * H / W + 0.2) * max(len(maps), 2) + 1.1, text=0.9)
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    figure.suptitle(
        f"{sanitized(title)}\nrows: layers; columns: mean of the heads, then each head; color: multiples of uniform "
        f"attention\nbelow a map: over how many of {tokens} tokens it is spread, exp(entropy)",
        fontsize="medium",
        parse_math=False,
    )
    grid = figure.add_gridspec(max(len(maps), 2), heads + 3)
    photo = figure.add_subplot(grid[:2, :2])
    photo.imshow(image)
    photo.set_anchor("N")
    panels = []
    for row, (layer, head_maps) in enumerate(maps.items()):
        for column, attention in enumerate([head_maps.mean(0), *head_maps]):
            axes = figure.add_subplot(grid[row, column + 2])
            axes.imshow(over_gray(image, tokens * attention, end, interpolation), extent=(0, W, H, 0))
            axes.set_xlabel(spread_of(attention), fontsize="x-small", labelpad=1)
            panels.append(axes)
            if column == 0:
                axes.set_ylabel(str(layer), fontsize="x-small", rotation=0, ha="right", va="center")
            if row == 0:
                axes.set_title(str(column) if column else "mean", fontsize="x-small")
    without_ticks([photo, *panels])
    attention_bar(figure, panels, end, clipped=any(tokens * m.max() > end for m in maps.values()))
    return figure

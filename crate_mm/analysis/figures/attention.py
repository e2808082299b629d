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
from .style import color_bar, sheet

BRIGHTEST = 99.5  # percentile at the top of the color scale, so that one bright patch does not darken all others


@FIGURES.register_module("attention")
class Attention(Figure):
    """CLS attention over each image, by layer and head, and the mean of the heads."""

    help = "CLS attention over images, by layer and head"
    input_kind = "images"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--interpolation",
            choices=["bilinear", "nearest"],
            default="bilinear",
            help="interpolation between patches (default: bilinear)",
        )

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        inputs = preprocessed(subject)
        attention = cls_attention(subject.model, inputs, options.layers)
        grid = patch_layout(subject.model, inputs)[1:]
        pictures, numbers = {}, {}
        for i, (name, picture) in enumerate(zip(subject.names, subject.pictures)):
            maps = {layer + 1: a[i].unflatten(-1, grid).float().cpu() for layer, a in attention.items()}
            numbers |= {f"{i}_layer_{layer}": m.numpy() for layer, m in maps.items()}
            title = f"{name_of(subject.model)}: the CLS token's attention, {Path(name).name}"
            plot = plot_attention(picture, maps, title, options.interpolation)
            pictures[f"attention_{i}_{shortened(Path(name).stem)}"] = plot
        note = ""
        if pooling(subject.model) == "mean":
            note = (
                "the head predicts from the mean of all tokens: the CLS token's attention does not explain the "
                "prediction"
            )
        return FigureOutput(pictures, {"attention.npz": numbers}, note)


def plot_attention(
    image: np.ndarray, maps: dict[int, Tensor], title: str, interpolation: str = "bilinear"
) -> MplFigure:
    """Plot an image and its CLS attention on one scale: one row per layer; columns for the heads' mean and each head.

    Args:
        image: ``(H, W, 3)`` of uint8.
        maps: ``{layer from 1: (heads, rows, columns)}``.
        title: title of the figure.
        interpolation: interpolation between patches, 'bilinear' or 'nearest'.
    """
    heads, (H, W) = max(len(m) for m in maps.values()), image.shape[:2]
    high = max(np.percentile(m, BRIGHTEST) for m in maps.values())
    maximum = max(m.max().item() for m in maps.values())
    side = 1.15
    figure = sheet(side * (heads + 3) + 0.9, side * H / W * max(len(maps), 2) + 0.9, text=0.7)
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    figure.suptitle(
        f"{sanitized(title)}\nrows: layers; columns: mean of the heads, then each head",
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
            mappable = axes.imshow(
                attention, cmap="magma", vmin=0, vmax=high, interpolation=interpolation, extent=(0, W, H, 0)
            )
            panels.append(axes)
            if column == 0:
                axes.set_ylabel(str(layer), fontsize="x-small", rotation=0, ha="right", va="center")
            if row == 0:
                axes.set_title(str(column) if column else "mean", fontsize="x-small")
    without_ticks([photo, *panels])
    color_bar(figure, mappable, panels, extend="max" if maximum > high else "neither")
    return figure

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

BRIGHTEST = 99.5  # percent of the numbers are below the top of the scale: single patches would darken all others


@FIGURES.register_module("attention")
class Attention(Figure):
    """The CLS token's attention over each image, by layer and head, and the mean of the heads."""

    help = "the CLS token's attention by head and layer over images"
    input_kind = "images"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--interpolation",
            choices=["bilinear", "nearest"],
            default="bilinear",
            help="between patches; 'nearest' shows each as it is (default: bilinear)",
        )

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        inputs = preprocessed(subject)
        found = cls_attention(subject.model, inputs, options.layers)
        grid = patch_layout(subject.model, inputs)[1:]
        pictures, numbers = {}, {}
        for i, (name, picture) in enumerate(zip(subject.names, subject.pictures)):
            maps = {layer + 1: a[i].unflatten(-1, grid).float().cpu() for layer, a in found.items()}
            numbers |= {f"{i}_layer_{layer}": m.numpy() for layer, m in maps.items()}
            title = f"{name_of(subject.model)}: the CLS token's attention, {Path(name).name}"
            drawn = plot_attention(picture, maps, title, options.interpolation)
            pictures[f"attention_{i}_{shortened(Path(name).stem)}"] = drawn
        note = ""
        if pooling(subject.model) == "mean":
            note = (
                "the head predicts from the mean of all tokens: the CLS token's attention does not show what the "
                "prediction comes from"
            )
        return FigureOutput(pictures, {"attention.npz": numbers}, note)


def plot_attention(
    image: np.ndarray, maps: dict[int, Tensor], title: str, interpolation: str = "bilinear"
) -> MplFigure:
    """An image, and the CLS token's attention: a row a layer, a column a head, before them the mean; on one scale.

    Args:
        image: ``(H, W, 3)`` of uint8.
        maps: ``{layer from 1: (heads, rows, columns)}``.
        title: above them all.
        interpolation: between patches, 'bilinear' or 'nearest'.
    """
    heads, (H, W) = max(len(m) for m in maps.values()), image.shape[:2]
    high = max(np.percentile(m, BRIGHTEST) for m in maps.values())
    most = max(m.max().item() for m in maps.values())
    side = 1.15
    figure = sheet(side * (heads + 3) + 0.9, side * H / W * max(len(maps), 2) + 0.9, text=0.7)
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    figure.suptitle(
        f"{sanitized(title)}\nlayers down; the heads' mean, then head by head across",
        fontsize="medium",
        parse_math=False,
    )
    grid = figure.add_gridspec(max(len(maps), 2), heads + 3)
    photo = figure.add_subplot(grid[:2, :2])
    photo.imshow(image)
    photo.set_anchor("N")
    panels = []
    for row, (layer, of_heads) in enumerate(maps.items()):
        for column, attention in enumerate([of_heads.mean(0), *of_heads]):
            axes = figure.add_subplot(grid[row, column + 2])
            drawn = axes.imshow(
                attention, cmap="magma", vmin=0, vmax=high, interpolation=interpolation, extent=(0, W, H, 0)
            )
            panels.append(axes)
            if column == 0:
                axes.set_ylabel(str(layer), fontsize="x-small", rotation=0, ha="right", va="center")
            if row == 0:
                axes.set_title(str(column) if column else "mean", fontsize="x-small")
    without_ticks([photo, *panels])
    color_bar(figure, drawn, panels, extend="max" if most > high else "neither")
    return figure

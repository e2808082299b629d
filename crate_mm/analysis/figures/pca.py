"""Principal components of patch tokens as colors."""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure as MplFigure

from ...io.untrusted import sanitized
from ...registry import FIGURES
from ..projection import pca_colors
from ..taps import capture, find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, captions, patch_layout, preprocessed, without_ticks
from .style import columns_of, sheet


@FIGURES.register_module("pca")
class PCA(Figure):
    """The first three principal components of the patches of all images together."""

    help = "principal components of patch tokens as colors, for several images together"
    input_kind = "images"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--foreground", action="store_true", help="hide the background, by the first component")

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        layer = options.layers or [-1]
        if len(layer) > 1:
            raise ValueError(f"pca shows one layer, got {len(layer)}")
        inputs = preprocessed(subject)
        with capture(subject.model, ("tap_out",), layer) as captured, torch.no_grad():
            subject.model(inputs)
        prefix, *grid = patch_layout(subject.model, inputs)
        colors, visible = pca_colors(captured["tap_out"][0][:, prefix:], options.foreground)
        shape = (len(subject.pictures), *grid)
        colors, (number,) = colors.reshape(*shape, 3), find_layers(subject.model, layer)
        title = f"{name_of(subject.model)}: principal components of the patches, layer {number + 1}"
        picture = plot_pca(list(subject.pictures), list(colors), captions(subject, len(colors)), title)
        return FigureOutput({"pca": picture}, {"pca.npz": {"colors": colors, "shown": visible.reshape(shape)}})


def plot_pca(images: list[np.ndarray], colors: list[np.ndarray], captions: list[str], title: str) -> MplFigure:
    """Plot images, and below each image the first three principal components of its patches as red, green and blue.

    Args:
        images: ``(H, W, 3)`` of uint8.
        colors: ``(rows, columns, 3)`` of 0..1.
        captions: captions of the images.
        title: title of the figure.
    """
    columns = columns_of(len(images))
    rows = -(-len(images) // columns)
    H, W = images[0].shape[:2]
    figure = sheet(max(1.7 * columns + 0.3, 4.5), 2 * 1.7 * H / W * rows + 0.6 * rows + 0.3, text=0.3 * rows + 0.3)
    figure.get_layout_engine().set(h_pad=0.02, hspace=0.01)
    figure.suptitle(sanitized(title), fontsize="medium", parse_math=False)
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for number, (image, color, text) in enumerate(zip(images, colors, captions)):
        row, column = divmod(number, columns)
        grid[2 * row, column].imshow(image)
        grid[2 * row + 1, column].imshow(color, interpolation="nearest", extent=(0, W, H, 0))
        grid[2 * row + 1, column].set_xlabel(text, fontsize="x-small", parse_math=False)
    without_ticks(grid.flat)
    for number in range(len(images), rows * columns):
        row, column = divmod(number, columns)
        grid[2 * row, column].remove()
        grid[2 * row + 1, column].remove()
    return figure

"""Principal components of patch tokens as colours."""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure as Picture

from ...registry import FIGURES
from ...untrusted import shown
from ..projection import pca_colors
from ..taps import capture, name_of, steps
from .base import Drawn, Figure, Subject, patch_tokens, preprocessed


@FIGURES.register_module("pca")
class PCA(Figure):
    """The first three principal components of the patches of all images together."""

    help = "principal components of patch tokens as colours, over several images together"
    looks_at = "images"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--foreground", action="store_true", help="split off the background by the first component")

    def run(self, subjects: list[Subject], options: argparse.Namespace) -> Drawn:
        (subject,) = subjects
        layer = options.layers or [-1]
        if len(layer) > 1:
            raise ValueError(f"pca shows one layer, got {len(layer)} of them")
        with capture(subject.model, ("tap_out",), layer) as seen, torch.no_grad():
            subject.model(preprocessed(subject))
        first, *grid = patch_tokens(subject.model)
        colors, kept = pca_colors(seen["tap_out"][0][:, first:], options.foreground)
        shape = (len(subject.pictures), *grid)
        colors, (number,) = colors.reshape(*shape, 3), steps(subject.model, layer)
        title = f"{name_of(subject.model)}: principal components of the patches, layer {number + 1}"
        picture = plot_pca(list(subject.pictures), list(colors), title)
        return Drawn({"pca": picture}, {"pca.npz": {"colors": colors, "shown": kept.reshape(shape)}})


def plot_pca(images: list[np.ndarray], colors: list[np.ndarray], title: str) -> Picture:
    """Images in a row and below each the first three principal components of its patches as red, green and blue.

    Args:
        images: ``(H, W, 3)`` of uint8.
        colors: ``(rows, columns, 3)`` of 0..1.
        title: above them all.
    """
    figure = Picture(figsize=(max(1.7 * len(images) + 0.3, 5.5), 3.9), layout="constrained")
    figure.suptitle(shown(title), fontsize=10, parse_math=False)
    above, below = figure.subplots(2, len(images), squeeze=False)
    for axes, image in zip(above, images):
        axes.imshow(image)
    for axes, color in zip(below, colors):
        axes.imshow(color, interpolation="nearest")
    for axes in (*above, *below):
        axes.set(xticks=[], yticks=[])
    return figure

"""The attention of the CLS token, or of CBSA's representatives, over images."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure as MplFigure
from torch import Tensor, nn

from ...io.untrusted import sanitized, shortened
from ...registry import FIGURES
from ..attention import cls_attention, pooling
from ..taps import capture, find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, patch_layout, preprocessed, without_ticks
from .overlay import attention_bar, over_gray, scale_end, spread_of
from .style import sheet

HEADS = "rows: layers; columns: mean of the heads, then each head"
PARTS = "each map: one representative, placed as the image part that it averages; first column: mean of the row"


@FIGURES.register_module("attention")
class Attention(Figure):
    """CLS attention over each image, by layer and head, and the mean of the heads.

    With ``--representatives``, the attention of each representative in one layer with CBSA, averaged over the heads.
    """

    help = "CLS attention over images, by layer and head; with --representatives, that of CBSA's representatives"
    input_kind = "images"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--interpolation",
            choices=["bilinear", "nearest"],
            default="nearest",
            help="interpolation between patches (default: nearest)",
        )
        text = "attention of CBSA's representatives in one layer (default: the last)"
        parser.add_argument("--representatives", action="store_true", help=text)

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        inputs = preprocessed(subject)
        if options.representatives:
            layer, by_head = representative_attention(subject.model, inputs, options.layers or [-1])
            side = math.isqrt(by_head.shape[2])
            attention = dict(enumerate(by_head.mean(1).unflatten(1, (side, -1)).unbind(1)))
            key, caption = "representatives_row", PARTS
            kind = f"attention of {side * side} representatives, layer {layer + 1}, mean of the heads"
        else:
            attention = cls_attention(subject.model, inputs, options.layers)
            key, kind, caption = "layer", "the CLS token's attention", HEADS
        layout = patch_layout(subject.model, inputs)
        tokens = 1 + layout.rows * layout.columns
        end = scale_end((tokens * a.float().cpu() for a in attention.values()), tokens)
        pictures, numbers = {}, {}
        for i, (name, picture) in enumerate(zip(subject.names, subject.pictures)):
            maps = {row + 1: a[i].unflatten(-1, layout[1:]).float().cpu() for row, a in attention.items()}
            numbers |= {f"{i}_{key}_{number}": m.numpy() for number, m in maps.items()}
            title = f"{name_of(subject.model)}: {kind}, {Path(name).name}"
            plot = plot_attention(picture, maps, end, title, options.interpolation, caption)
            pictures[f"attention_{i}_{shortened(Path(name).stem)}"] = plot
        note = ""
        if pooling(subject.model) == "mean" and not options.representatives:
            note = (
                "the head predicts from the mean of all tokens: the CLS token's attention does not explain the "
                "prediction"
            )
        return FigureOutput(pictures, {"attention.npz": numbers}, note)


@torch.no_grad()
def representative_attention(model: nn.Module, images: Tensor, layers: list[int]) -> tuple[int, Tensor]:
    """Return a layer's number, from 0, and the attention of its m representatives to the patches, ``(B, K, m, N)``.

    Raises:
        ValueError: the layer does not exist or has no representatives, or there are several layers.
    """
    if len(layers) > 1:
        raise ValueError(f"--representatives uses one layer, got {len(layers)}")
    ((number, layer),) = find_layers(model, layers).items()
    layout = patch_layout(model, images)
    with capture(model, ("tap_w",), [number]) as tensors:
        model(images)
    maps = layer.maps(tensors["tap_w"][0], layout).values()
    values = next((m.values for m in maps if m.rows == "representatives" and m.columns == "tokens"), None)
    if values is None:
        raise ValueError(f"layer {number + 1} of {name_of(model)} has no representatives: use a model with CBSA")
    return number, values[..., layout.prefix : layout.prefix + layout.rows * layout.columns]


def plot_attention(
    image: np.ndarray, maps: dict[int, Tensor], end: float, title: str, interpolation: str, caption: str
) -> MplFigure:
    """Plot an image and its CLS attention on one scale: one row per layer; columns for the heads' mean and each head.

    The number below each map is ``exp(entropy)``, the number of tokens over which the attention is spread.

    Args:
        image: ``(H, W, 3)`` of uint8.
        maps: ``{layer from 1: (heads, rows, columns)}``.
        end: end of the color scale, in multiples of uniform attention.
        title: title of the figure.
        interpolation: interpolation between patches, 'bilinear' or 'nearest'.
        caption: the meaning of rows and columns.
    """
    heads, (H, W) = max(len(m) for m in maps.values()), image.shape[:2]
    tokens = 1 + next(iter(maps.values()))[0].numel()
    side = 1.15
    figure = sheet(side * (heads + 3) + 1.1, (side * H / W + 0.2) * max(len(maps), 2) + 1.1, text=0.9)
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    figure.suptitle(
        f"{sanitized(title)}\n{caption}; color: multiples of uniform attention\n"
        f"below a map: over how many of {tokens} tokens it is spread, exp(entropy)",
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

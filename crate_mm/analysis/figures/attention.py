"""The CLS token's attention over images."""

import argparse
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure as Picture
from torch import Tensor

from ...registry import FIGURES
from ...untrusted import shortened, shown
from ..attention import cls_attention
from ..taps import name_of
from .base import Drawn, Figure, Subject, patch_tokens, preprocessed


@FIGURES.register_module("attention")
class Attention(Figure):
    """The CLS token's attention over each image, by layer and head."""

    help = "the CLS token's attention by head and layer over images"
    looks_at = "images"

    def run(self, subjects: list[Subject], options: argparse.Namespace) -> Drawn:
        (subject,) = subjects
        found = cls_attention(subject.model, preprocessed(subject), options.layers)
        grid = patch_tokens(subject.model)[1:]
        pictures, numbers = {}, {}
        for i, (name, picture) in enumerate(zip(subject.names, subject.pictures)):
            maps = {layer + 1: a[i].unflatten(-1, grid) for layer, a in found.items()}
            numbers |= {f"{i}_layer_{layer}": m.cpu().numpy() for layer, m in maps.items()}
            large = {
                layer: F.interpolate(m[None], picture.shape[:2], mode="bilinear", align_corners=False)[0]
                for layer, m in maps.items()
            }
            title = f"{name_of(subject.model)}: the CLS token's attention, {Path(name).name}"
            pictures[f"attention_{i}_{shortened(Path(name).stem)}"] = plot_attention(picture, large, title)
        return Drawn(pictures, {"attention.npz": numbers})


def plot_attention(image: np.ndarray, maps: dict[int, Tensor], title: str) -> Picture:
    """An image and, over it, the CLS token's attention, a row a layer, a column a head.

    Args:
        image: ``(H, W, 3)`` of uint8.
        maps: ``{layer from 1: (heads, H, W)}``; each head has a scale of its own.
        title: above them all.
    """
    heads = max(len(m) for m in maps.values())
    figure = Picture(figsize=(1.5 * (heads + 1), 1.6 * len(maps) + 0.4), layout="constrained")
    figure.suptitle(shown(title), fontsize=10, parse_math=False)
    for row, (layer, heads_here) in zip(figure.subplots(len(maps), heads + 1, squeeze=False), maps.items()):
        row[0].imshow(image)
        row[0].set_ylabel(f"layer {layer}", fontsize=9)
        for axes in row:
            axes.set(xticks=[], yticks=[])
        for k, (axes, attention) in enumerate(zip(row[1:], heads_here)):
            axes.imshow(image, alpha=0.45)
            axes.imshow(attention.float().cpu(), cmap="inferno", alpha=0.6)
            if layer == next(iter(maps)):
                axes.set_title(f"head {k + 1}", fontsize=8)
    return figure

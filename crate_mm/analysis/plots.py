"""The figures. Each function draws what it is given and returns a matplotlib Figure; ``save`` writes it.

Figures are made without pyplot, whose global state would hold them, and which looks for a display.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..files import atomic_file
from ..untrusted import shown
from .layers import LayerRow

# Titles and axes as in the paper's Figure 3, then those of the further measures.
TITLES = {
    "rc_half": r"$R^c(\mathbf{Z}^{\ell+1/2})$ of the MSSA outputs",
    "sparsity": r"Sparsity $\|\mathbf{Z}^{\ell+1}\|_0/(d\cdot N)$ of the ISTA outputs",
    "rc_in": r"$R^c(\mathrm{LN}(\mathbf{Z}^{\ell}))$ of the MSSA inputs",
    "rc_out": r"$R^c(\mathbf{Z}^{\ell+1})$ of the ISTA outputs",
    "r_out": r"$R(\mathbf{Z}^{\ell+1})$ of the layer outputs",
    "objective": r"$R-R^c-\lambda\|\mathbf{Z}^{\ell+1}\|_0$ of the layer outputs",
    "active": "Positive activations of the MLPs",
}


def plot_layers(curves: dict[str, list[LayerRow]], measures: list[str], band: bool = True) -> Figure:
    """Measures by layer, a panel a measure, a line a curve, a band of one standard deviation over the samples.

    Args:
        curves: rows of ``LayerMeasures`` by label.
        measures: which to show; those that no curve has are left out.
        band: whether to show the spread.
    """
    present = [m for m in measures if any(row.measure == m for rows in curves.values() for row in rows)]
    figure = Figure(figsize=(5.2 * len(present), 3.8), layout="constrained")
    for axes, measure in zip(np.atleast_1d(figure.subplots(1, len(present))), present):
        for number, (label, rows) in enumerate(curves.items()):
            mine = [row for row in rows if row.measure == measure]
            if not mine:
                continue
            layer, mean, std = (np.array([getattr(row, key) for row in mine]) for key in ("layer", "mean", "std"))
            color = f"C{number % 10}"
            axes.plot(layer, mean, marker="o", markersize=4, color=color, label=shown(label, 60))
            if band:
                axes.fill_between(layer, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        axes.set_title(TITLES[measure], fontsize=10)
        axes.set_xlabel(r"Layer index $\ell$")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        _legend(axes, fontsize=8)
    return figure


def plot_tokens(blocks: dict[int, Tensor], title: str) -> Figure:
    """Heat maps of blocks of |Z^l|, a panel a layer, on one scale; the paper, Figure 6.

    Args:
        blocks: ``{layer from 1: (dimensions, tokens)}``.
        title: above them all.
    """
    figure, panels = _grid(len(blocks), size=2.3, title=title)
    high = max(block.abs().max().item() for block in blocks.values())
    for axes, (layer, block) in zip(panels, blocks.items()):
        image = axes.imshow(block.abs().float().cpu(), cmap="Blues", vmin=0, vmax=high, interpolation="nearest")
        zero = (block == 0).float().mean().item()
        axes.set_title(f"layer {layer}: {100 * zero:.0f} % zero", fontsize=9)
        axes.set_aspect("auto")
        axes.set(xticks=[], yticks=[])
    panels[0].set(xlabel="tokens", ylabel="dimensions")
    figure.colorbar(image, ax=panels, shrink=0.6)
    return figure


def plot_subspaces(grams: dict[int, Tensor], incoherence: dict[int, float], num_heads: int, random: float) -> Figure:
    """Gram matrices of the subspaces' directions by layer, and their incoherence by layer; the paper, Figure 7.

    Args:
        grams: ``{layer from 1: (directions, directions)}``, heads side by side.
        incoherence: ``{layer from 1: mean absolute cosine between heads}``.
        num_heads: K, for the lines between the heads.
        random: the incoherence of random directions, for comparison.
    """
    figure, panels = _grid(len(grams) + 1, size=2.4)
    for axes, (layer, gram) in zip(panels, grams.items()):
        image = axes.imshow(gram.abs().float().cpu(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for k in range(1, num_heads):
            axes.axhline(k * len(gram) / num_heads - 0.5, color="0.75", linewidth=0.5)
            axes.axvline(k * len(gram) / num_heads - 0.5, color="0.75", linewidth=0.5)
        axes.set_title(rf"$|\mathbf{{U}}^\top\mathbf{{U}}|$, layer {layer}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    axes = panels[len(grams)]
    axes.plot(list(incoherence), list(incoherence.values()), marker="o", markersize=4, label="this model")
    axes.axhline(random, color="0.5", linestyle="--", label="random directions")
    axes.set_ylim(0, 1.25 * max(random, *incoherence.values()))
    axes.set_title("mean |cosine| between heads", fontsize=9)
    axes.set_xlabel("layer", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7, loc="lower right")
    figure.colorbar(image, ax=panels, shrink=0.6)
    return figure


def plot_attention(image: np.ndarray, maps: dict[int, Tensor], title: str) -> Figure:
    """An image and, over it, the CLS token's attention, a row a layer, a column a head.

    Args:
        image: ``(H, W, 3)`` of uint8.
        maps: ``{layer from 1: (heads, H, W)}``; each head has a scale of its own.
        title: above them all.
    """
    heads = max(len(m) for m in maps.values())
    figure = Figure(figsize=(1.5 * (heads + 1), 1.6 * len(maps) + 0.4), layout="constrained")
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


def plot_pca(images: list[np.ndarray], colors: list[np.ndarray], title: str) -> Figure:
    """Images in a row and below each the first three principal components of its patches as red, green and blue.

    Args:
        images: ``(H, W, 3)`` of uint8.
        colors: ``(rows, columns, 3)`` of 0..1.
        title: above them all.
    """
    figure = Figure(figsize=(max(1.7 * len(images) + 0.3, 5.5), 3.9), layout="constrained")
    figure.suptitle(shown(title), fontsize=10, parse_math=False)
    above, below = figure.subplots(2, len(images), squeeze=False)
    for axes, image in zip(above, images):
        axes.imshow(image)
    for axes, color in zip(below, colors):
        axes.imshow(color, interpolation="nearest")
    for axes in (*above, *below):
        axes.set(xticks=[], yticks=[])
    return figure


def plot_features(points: np.ndarray, labels: np.ndarray, names: list[str], title: str) -> Figure:
    """Points ``(n, 2)`` coloured by class, with a legend where there are at most twenty classes."""
    figure = Figure(figsize=(7, 5.4), layout="constrained")
    axes = figure.subplots()
    present = sorted(set(labels.tolist()))
    cmap = "tab10" if len(present) <= 10 else "tab20"
    if len(present) <= 20:
        for number, label in enumerate(present):
            mine = labels == label
            axes.scatter(*points[mine].T, s=6, color=colormaps[cmap](number), label=shown(names[label], 40))
        _legend(axes, fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.scatter(*points.T, s=6, c=labels, cmap="nipy_spectral")
    axes.set(xticks=[], yticks=[])
    axes.set_title(shown(title), fontsize=10, parse_math=False)
    return figure


def save(figure: Figure, prefix: str | Path) -> list[Path]:
    """Write ``<prefix>.png`` and ``<prefix>.pdf``; return the paths."""
    files = [Path(f"{prefix}.{kind}") for kind in ("png", "pdf")]
    for file in files:
        with atomic_file(file) as opened:
            figure.savefig(opened, dpi=150, format=file.suffix[1:])
    return files


def _legend(axes: Axes, **kwargs) -> None:
    """A legend whose labels, which may be names of files and classes, are shown as they are, a $ too."""
    for text in axes.legend(**kwargs).get_texts():
        text.set_parse_math(False)


def _grid(count: int, size: float, title: str = "") -> tuple[Figure, list]:
    columns = min(count, max(4, math.ceil(math.sqrt(count))))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(size * columns + 0.8, size * rows + 0.5), layout="constrained")
    if title:
        figure.suptitle(shown(title), fontsize=10, parse_math=False)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.axis("off")
    return figure, panels[:count]

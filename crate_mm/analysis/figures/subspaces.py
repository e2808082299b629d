"""Gram matrix of the subspaces and their incoherence; the paper, Figure 7."""

import argparse
import math

import torch
from matplotlib.figure import Figure as MplFigure
from torch import Tensor

from ...registry import FIGURES
from ..measures import subspace_gram, subspace_incoherence
from ..taps import find_layers, name_of
from .base import Figure, FigureInput, FigureOutput, without_ticks
from .style import color_bar, layer_axis, panel_grid


@FIGURES.register_module("subspaces")
class Subspaces(Figure):
    """Gram matrix and incoherence of the subspaces in each layer that has subspaces."""

    help = "Gram matrix of the subspaces and their incoherence by layer (Figure 7)"
    input_kind = "model"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--directions", type=int, default=4, help="basis vectors per head in the picture (default: 4)"
        )

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        generator = torch.Generator().manual_seed(options.seed)
        grams, incoherence = {}, {}
        for layer, step in find_layers(subject.model, options.layers).items():
            subspaces = step.subspaces()
            if subspaces is None and options.layers is None:
                continue
            if subspaces is None:
                raise ValueError(f"{name_of(subject.model)} has no subspaces in layer {layer + 1}")
            U, K = subspaces.U.detach(), subspaces.num_heads
            p, count = U.shape[1] // K, max(options.directions, 1)
            columns = torch.cat([k * p + torch.randperm(p, generator=generator)[:count] for k in range(K)])
            grams[layer + 1] = subspace_gram(U[:, columns])
            incoherence[layer + 1] = subspace_incoherence(U, K).item()
        if not grams:
            raise ValueError(f"{name_of(subject.model)} has no subspaces, so R^c is not defined")
        random = math.sqrt(2 / (math.pi * U.shape[0]))
        numbers = {"mean_abs_cosine_between_heads": incoherence, "of_random_directions": random}
        numbers["gram_of_shown_directions"] = {layer: gram.tolist() for layer, gram in grams.items()}
        return FigureOutput({"subspaces": plot_subspaces(grams, incoherence, K, random)}, {"subspaces.json": numbers})


def plot_subspaces(grams: dict[int, Tensor], incoherence: dict[int, float], num_heads: int, random: float) -> MplFigure:
    """Plot Gram matrices of the basis vectors by layer, and the incoherence by layer; the paper, Figure 7.

    Args:
        grams: ``{layer from 1: (basis vectors, basis vectors)}``, heads side by side.
        incoherence: ``{layer from 1: mean absolute cosine between heads}``.
        num_heads: K, for the lines between the heads.
        random: incoherence of random vectors, for comparison.
    """
    figure, panels, grid = panel_grid(len(grams), size=2.1, reserved=2.2)
    for axes, (layer, gram) in zip(panels, grams.items()):
        image = axes.imshow(gram.abs().float().cpu(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for k in range(1, num_heads):
            axes.axhline(k * len(gram) / num_heads - 0.5, color="0.75", linewidth=0.5)
            axes.axvline(k * len(gram) / num_heads - 0.5, color="0.75", linewidth=0.5)
        axes.set_title(f"layer {layer}", fontsize="small")
    without_ticks(panels)
    color_bar(figure, image, panels).set_label(r"$|\mathbf{U}^\top\mathbf{U}|$", fontsize="small")
    axes = figure.add_subplot(grid[-1, :])
    axes.plot(list(incoherence), list(incoherence.values()), marker="o", label="this model")
    axes.axhline(random, color="0.5", linestyle="--", label="random vectors")
    axes.set_ylim(0, 1.25 * max(random, *incoherence.values()))
    axes.set_ylabel("mean |cosine|\nbetween heads", fontsize="small")
    layer_axis(axes, min(incoherence), max(incoherence))
    axes.tick_params(labelsize="x-small")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="lower right")
    return figure

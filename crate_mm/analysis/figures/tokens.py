"""Heat maps of a random submatrix (dimensions x tokens) of each layer's tokens; the paper, Figures 6 and 8 to 11."""

import argparse

import torch
from matplotlib.figure import Figure as MplFigure
from torch import Tensor

from ...io.untrusted import sanitized
from ...registry import FIGURES
from ..taps import name_of, read_taps
from .base import Figure, FigureInput, FigureOutput, run_batches, without_ticks
from .style import color_bar, panel_grid


@FIGURES.register_module("tokens")
class Tokens(Figure):
    """Heat maps of a submatrix of each layer's tokens for one image.

    The rows of a submatrix are up to ``--block`` random dimensions, and its columns are up to ``--block`` random
    tokens. Rows and columns are the same for all layers.
    """

    help = "heat maps of a submatrix of each layer's tokens for one image (Figures 6, 8-11)"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--index", type=int, default=0, help="image of the split (default: 0)")
        parser.add_argument("--block", type=int, default=50, help="side of the submatrix (default: 50)")

    def choose(self, total: int, options: argparse.Namespace) -> list[int]:
        if not 0 <= options.index < total:
            raise ValueError(f"--index {options.index} does not exist: the split has {total} images, from 0")
        return [options.index]

    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        (subject,) = subjects
        outputs: dict[int, Tensor] = {}
        with read_taps(subject.model, {"tap_out": outputs.__setitem__}, options.layers):
            run_batches(subject.model, subject.batches)
        N, d = next(iter(outputs.values())).shape[1:]
        generator = torch.Generator().manual_seed(options.seed)
        rows, columns = (torch.randperm(n, generator=generator)[: max(options.block, 1)].sort()[0] for n in (d, N))
        blocks = {layer + 1: z[0].T[rows][:, columns].cpu() for layer, z in sorted(outputs.items())}
        title = f"{name_of(subject.model)}: {len(rows)} of {d} dimensions, {len(columns)} of {N} tokens"
        numbers = {"rows": rows, "columns": columns, **{f"layer_{n}": block.numpy() for n, block in blocks.items()}}
        return FigureOutput({"tokens": plot_tokens(blocks, title)}, {"tokens.npz": numbers})


def plot_tokens(blocks: dict[int, Tensor], title: str) -> MplFigure:
    """Plot a heat map of a submatrix of ``|Z^l|`` for each layer, with one color scale; the paper, Figure 6.

    Args:
        blocks: submatrix of each layer, ``(dimensions, tokens)``, by layer number, from 1.
        title: title of the figure.
    """
    figure, panels, _ = panel_grid(len(blocks), size=2.1)
    figure.suptitle(sanitized(title), fontsize="medium", parse_math=False)
    high = max(block.abs().max().item() for block in blocks.values())
    for axes, (layer, block) in zip(panels, blocks.items()):
        image = axes.imshow(block.abs().float().cpu(), cmap="Blues", vmin=0, vmax=high, interpolation="nearest")
        zero = (block == 0).float().mean().item()
        axes.set_title(f"layer {layer}: {100 * zero:.0f} % zero", fontsize="small")
        axes.set_aspect("auto")
    without_ticks(panels)
    panels[0].set_xlabel("tokens", fontsize="small")
    panels[0].set_ylabel("dimensions", fontsize="small")
    color_bar(figure, image, panels)
    return figure

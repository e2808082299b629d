"""The measures of every layer over many images, in a stream: memory does not grow with their number.

Shapes: B images, N tokens, d embedding dimensions, L layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .capture import find_taps, on_taps
from .measures import coding_rate, nonzero_fraction, subspace_coding_rate

# Every measure of a layer l = 1..L, with what it is called in tables and figures. U is the layer's own.
MEASURES = {
    "rc_half": "R^c(Z^{l+1/2}; U)",  # the paper's Figure 3: the output of MSSA
    "sparsity": "||Z^{l+1}||_0 / (d N)",  # the paper's Figure 3: the output of ISTA
    "rc_in": "R^c(LN(Z^l); U)",  # what the official script measures: the input of MSSA
    "rc_out": "R^c(Z^{l+1}; U)",
    "r_out": "R(Z^{l+1})",
    "objective": "R(Z^{l+1}) - R^c(Z^{l+1}; U) - lambda ||Z^{l+1}||_0",
    "active": "positive activations of the MLP",  # what stands for sparsity in a ViT, whose GELU is never exactly zero
}


class Moments:
    """Mean and standard deviation of numbers that come in batches (Chan's update, in float64)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Take in a number a sample, ``(B,)``."""
        values = values.detach().double()
        mean, squares = values.mean().item(), (values - values.mean()).square().sum().item()
        n, m = self.count, len(values)
        delta = mean - self.mean
        self.count = n + m
        self.mean += delta * m / self.count
        self._squares += squares + delta**2 * n * m / self.count

    @property
    def std(self) -> float:
        """Standard deviation over the samples; NaN for less than two."""
        return (self._squares / (self.count - 1)) ** 0.5 if self.count > 1 else float("nan")


class LayerRow(NamedTuple):
    """One measure of one layer (the first is 1, as in the paper) over the images."""

    measure: str
    layer: int
    mean: float
    std: float
    count: int


class LayerMeasures:
    """What ``measure_layers`` has gathered."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str, int], Moments] = {}

    def take(self, measure: str, layer: int, values: Tensor) -> None:
        """Take in a measure of a layer, counted from 0, a number a sample ``(B,)``."""
        self.moments.setdefault((measure, layer), Moments()).update(values)

    def rows(self) -> list[LayerRow]:
        """All there is, measure by measure and layer by layer."""
        order = list(MEASURES)
        keys = sorted(self.moments, key=lambda key: (order.index(key[0]), key[1]))
        return [LayerRow(m, l + 1, (s := self.moments[m, l]).mean, s.std, s.count) for m, l in keys]  # noqa: E741

    def means(self, measure: str) -> list[float]:
        """A measure's mean, layer by layer; empty if the model does not have it."""
        return [row.mean for row in self.rows() if row.measure == measure]


@contextmanager
def measure_layers(
    model: nn.Module, layers: list[int] | None = None, eps_squared: float = 0.01, unit_length: bool = True
) -> Iterator[LayerMeasures]:
    """Gather the measures of each layer from the forward passes while the context is open::

        with measure_layers(model) as measures, torch.inference_mode():
            for images in batches:
                model(images)
        measures.means("rc_half")  # by layer

    CRATE has all of ``MEASURES`` but 'active'; a model with ``tap_out`` alone, as ViT, has 'r_out' and, with
    ``tap_act``, 'active'. The model is left as it was.

    Args:
        model: one with taps.
        layers: which layers, all if not given.
        eps_squared: of the coding rates, Eqs. (7) and (8).
        unit_length: scale tokens to unit length first (within each head for R^c), as the official code does.

    Raises:
        ValueError: the model has no taps, or no such layer.
    """
    gathered = LayerMeasures()
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    readers = {"tap_out": lambda layer, z: gathered.take("r_out", layer, coding_rate(z, eps_squared, unit_length))}
    if "tap_act" in names:
        readers["tap_act"] = lambda layer, a: gathered.take("active", layer, (a > 0).float().mean((-2, -1)))
    if "tap_half" in names:
        blocks = subspaces(model)

        def rate(z: Tensor, layer: int) -> Tensor:
            block = blocks[layer]
            return subspace_coding_rate(block.mssa.proj(z), block.mssa.num_heads, eps_squared, unit_length)

        def read_out(layer: int, z: Tensor) -> None:
            r, rc, filled = coding_rate(z, eps_squared, unit_length), rate(z, layer), nonzero_fraction(z)
            gathered.take("r_out", layer, r)
            gathered.take("rc_out", layer, rc)
            gathered.take("sparsity", layer, filled)
            price = blocks[layer].ista.lambd * z.shape[-1] * z.shape[-2]
            gathered.take("objective", layer, r - rc - price * filled)

        heads = [block.mssa.num_heads for block in blocks]
        readers = {
            "tap_w": lambda layer, w: gathered.take(
                "rc_in", layer, subspace_coding_rate(w, heads[layer], eps_squared, unit_length)
            ),
            "tap_half": lambda layer, z: gathered.take("rc_half", layer, rate(z, layer)),
            "tap_out": read_out,
        }
    with on_taps(model, {tap: torch.no_grad()(read) for tap, read in readers.items()}, layers):
        yield gathered


def subspaces(model: nn.Module) -> list[nn.Module]:
    """The layers that have subspaces, first one first: those with ``mssa`` and ``ista`` beside their taps.

    Raises:
        ValueError: the model has none, as a ViT.
    """
    find_taps(model, "tap_out")  # says so if there is no tap at all
    blocks = [module for module in model.modules() if hasattr(module, "mssa") and hasattr(module, "tap_half")]
    if not blocks:
        name = type(getattr(model, "backbone", model)).__name__
        raise ValueError(f"{name} has no MSSA layer: its subspaces and R^c are not defined")
    return blocks

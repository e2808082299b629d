"""The measures of a layer, each a row: its name, its titles, the tap that it reads, what it needs and what it computes.

Reading, CSV, titles, the hook and the command line's options follow from this table; ``measure`` adds a row.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.layers import Layer
from ..registry import suggest
from .measures import coding_rate, nonzero_fraction, subspace_coding_rate


class Settings(NamedTuple):
    """How the coding rates are computed: eps^2 of Eqs. (7) and (8), and whether tokens are scaled to unit length first
    (within each head for R^c), as the official code does."""

    eps_squared: float = 0.01
    unit_length: bool = True


class Measure(NamedTuple):
    """One measure of a layer l = 1..L.

    ``needs`` names what a layer must have besides the tap: 'subspaces', for measures against U, and 'code', for those
    that take the layer's output for its code. ``compute(passed, layer, settings)`` gets what passed the tap, ``(B, N,
    ...)``, and returns a number a sample, ``(B,)``.
    """

    name: str
    meaning: str
    title: str
    tap: str
    needs: tuple[str, ...]
    compute: Callable[[Tensor, Layer, Settings], Tensor]

    def defined_for(self, layer: Layer) -> bool:
        """Whether a layer has what the measure needs; the layer itself is asked."""
        has = {"subspaces": lambda: layer.subspaces() is not None, "code": lambda: layer.returns_code}
        return self.tap in layer.taps() and all(has[need]() for need in self.needs)


MEASURES: dict[str, Measure] = {}


def measure(name: str, meaning: str, title: str, tap: str, needs: tuple[str, ...] = ()) -> Callable:
    """Add a function to the table, as a decorator: see ``Measure``.

    Raises:
        ValueError: the name is taken, or ``needs`` names something else.
    """
    if name in MEASURES:
        raise ValueError(f"there is a measure {name!r} already")
    if set(needs) - {"subspaces", "code"}:
        raise ValueError(f"measure {name!r} may need 'subspaces' and 'code', got {needs}")

    def add(compute: Callable[[Tensor, Layer, Settings], Tensor]) -> Callable:
        MEASURES[name] = Measure(name, meaning, title, tap, needs, torch.no_grad()(compute))
        return compute

    return add


def check_measures(names: list[str]) -> None:
    """Raise ``ValueError`` for a name that is in no row."""
    unknown = next((name for name in names if name not in MEASURES), None)
    if unknown is not None:
        raise ValueError(f"there is no measure {unknown!r}: {suggest(unknown, list(MEASURES))}")


def _against_subspaces(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    U, num_heads = layer.subspaces()
    return subspace_coding_rate(z @ U.to(z.dtype), num_heads, *settings)


@measure(
    "rc_half", "R^c(Z^{l+1/2}; U)", r"$R^c(\mathbf{Z}^{\ell+1/2})$ after the compression", "tap_half", ("subspaces",)
)
def rc_half(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """The paper's Figure 3: after the compression layer."""
    return _against_subspaces(z, layer, settings)


@measure(
    "sparsity",
    "||A||_0 / (m N) of the m x N code A (CRATE's is Z^{l+1})",
    r"Sparsity of the code, $\|\mathbf{Z}^{\ell+1}\|_0/(d\cdot N)$ in CRATE",
    "tap_code",
)
def sparsity(code: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """The paper's Figure 3: of the sparse code, wherever in the layer it is."""
    return nonzero_fraction(code)


@measure(
    "sparsity_step1",
    "||A1||_0 / (m N) of the code after the first of two steps",
    r"Sparsity $\|\mathbf{A}_1\|_0/(m\cdot N)$ after the first step of ISTA",
    "tap_code1",
)
def sparsity_step1(code: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """CRATE-alpha's code on the way: 'sparsity' is that after its second layer."""
    return nonzero_fraction(code)


@measure(
    "rc_in", "R^c(LN(Z^l); U)", r"$R^c(\mathrm{LN}(\mathbf{Z}^{\ell}))$ before the compression", "tap_w", ("subspaces",)
)
def rc_in(w: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """What the official script measures: the input of the compression step, projected on the subspaces."""
    return subspace_coding_rate(w, layer.subspaces().num_heads, *settings)


@measure("rc_out", "R^c(Z^{l+1}; U)", r"$R^c(\mathbf{Z}^{\ell+1})$ of the layer outputs", "tap_out", ("subspaces",))
def rc_out(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """After the sparsification layer."""
    return _against_subspaces(z, layer, settings)


@measure("r_out", "R(Z^{l+1})", r"$R(\mathbf{Z}^{\ell+1})$ of the layer outputs", "tap_out")
def r_out(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """The rate of the tokens as a whole, which is defined for any layer."""
    return coding_rate(z, *settings)


@measure(
    "objective",
    "R(Z^{l+1}) - R^c(Z^{l+1}; U) - lambda ||Z^{l+1}||_0",
    r"$R-R^c-\lambda\|\mathbf{Z}^{\ell+1}\|_0$ of the layer outputs",
    "tap_out",
    ("subspaces", "code"),
)
def objective(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """The sparse rate reduction, which the network maximises layer by layer."""
    price = layer.lambd * z.shape[-1] * z.shape[-2]
    return coding_rate(z, *settings) - _against_subspaces(z, layer, settings) - price * nonzero_fraction(z)


@measure("active", "positive activations of the MLP", "Positive activations of the MLPs", "tap_act")
def active(activations: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """What stands for sparsity in a ViT, whose GELU is never exactly zero."""
    return (activations > 0).float().mean((-2, -1))

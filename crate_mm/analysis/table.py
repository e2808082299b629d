"""Table of the measures of a layer. ``measure`` adds a row; readers, CSV files, titles, hook and CLI use the table."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.layers import Layer
from ..registry import suggest
from .measures import coding_rate, nonzero_fraction, subspace_coding_rate, subspace_snr


class Settings(NamedTuple):
    """Settings of the coding rates: eps^2 of Eqs. (7) and (8), and whether tokens are first scaled to unit length
    (within each head for R^c), as in the official code."""

    eps_squared: float = 0.01
    unit_length: bool = True


class Measure(NamedTuple):
    """One measure of a layer l = 1..L.

    Attributes:
        name: name in CSV files and options.
        meaning: definition as plain text.
        title: title of a panel, with math.
        tap: the tap that the measure reads.
        needs: requirements on the layer besides the tap: 'subspaces' for measures against U, 'code' if the layer's
            output must be its code.
        compute: function of (tensor at the tap ``(B, N, ...)``, layer, settings) to one number per sample, ``(B,)``.
    """

    name: str
    meaning: str
    title: str
    tap: str
    needs: tuple[str, ...]
    compute: Callable[[Tensor, Layer, Settings], Tensor]

    def defined_for(self, layer: Layer) -> bool:
        """Return whether a layer has the measure's tap and meets its ``needs``."""
        has = {"subspaces": lambda: layer.subspaces() is not None, "code": lambda: layer.returns_code}
        return self.tap in layer.taps() and all(has[need]() for need in self.needs)


MEASURES: dict[str, Measure] = {}


def measure(name: str, meaning: str, title: str, tap: str, needs: tuple[str, ...] = ()) -> Callable:
    """Return a decorator that adds a function to the table. ``Measure`` describes the arguments.

    Raises:
        ValueError: the name is taken, or ``needs`` has an unknown entry.
    """
    if name in MEASURES:
        raise ValueError(f"measure {name!r} exists already: choose another name")
    if set(needs) - {"subspaces", "code"}:
        raise ValueError(f"measure {name!r}: expected needs from 'subspaces' and 'code', got {needs}")

    def add(compute: Callable[[Tensor, Layer, Settings], Tensor]) -> Callable:
        MEASURES[name] = Measure(name, meaning, title, tap, needs, torch.no_grad()(compute))
        return compute

    return add


def check_measures(names: list[str]) -> None:
    """Raise ``ValueError`` for a name that is not in the table."""
    unknown = next((name for name in names if name not in MEASURES), None)
    if unknown is not None:
        raise ValueError(f"unknown measure {unknown!r}: {suggest(unknown, list(MEASURES))}")


BASES = ("subspaces",)  # needs of a measure of R^c


def _rate(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """R^c of tokens against the layer's subspaces."""
    U, num_heads = layer.subspaces()
    return subspace_coding_rate(z @ U.to(z.dtype), num_heads, *settings)


def _nonzero(code: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """Fraction of nonzero entries of a sparse code."""
    return nonzero_fraction(code)


measure("rc_half", "R^c(Z^{l+1/2}; U)", r"$R^c(\mathbf{Z}^{\ell+1/2})$ after the compression", "tap_half", BASES)(_rate)
measure(
    "sparsity",
    "||A||_0 / (m N) of the m x N code A (CRATE's is Z^{l+1})",
    r"Sparsity of the code, $\|\mathbf{Z}^{\ell+1}\|_0/(d\cdot N)$ in CRATE",
    "tap_code",
)(_nonzero)
measure(
    "sparsity_step1",
    "||A1||_0 / (m N) of the code after the first of two steps",
    r"Sparsity $\|\mathbf{A}_1\|_0/(m\cdot N)$ after the first step of ISTA",
    "tap_code1",
)(_nonzero)
measure("rc_z", "R^c(Z^l; U)", r"$R^c(\mathbf{Z}^{\ell})$ before the compression, same projection", "tap_in", BASES)(
    _rate
)


@measure("rc_in", "R^c(LN(Z^l); U)", r"$R^c(\mathrm{LN}(\mathbf{Z}^{\ell}))$ before the compression", "tap_w", BASES)
def rc_in(w: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """R^c of the compression step's input, as in the official script."""
    return subspace_coding_rate(w, layer.subspaces().num_heads, *settings)


measure("rc_out", "R^c(Z^{l+1}; U)", r"$R^c(\mathbf{Z}^{\ell+1})$ of the layer outputs", "tap_out", BASES)(_rate)


@measure("r_out", "R(Z^{l+1})", r"$R(\mathbf{Z}^{\ell+1})$ of the layer outputs", "tap_out")
def r_out(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """Coding rate of the tokens, defined for every layer."""
    return coding_rate(z, *settings)


@measure(
    "objective",
    "R(Z^{l+1}) - R^c(Z^{l+1}; U) - lambda ||Z^{l+1}||_0",
    r"$R-R^c-\lambda\|\mathbf{Z}^{\ell+1}\|_0$ of the layer outputs",
    "tap_out",
    ("subspaces", "code"),
)
def objective(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """Sparse rate reduction. The layers are derived to maximize this objective."""
    penalty = layer.lambd * z.shape[-1] * z.shape[-2]
    return coding_rate(z, *settings) - _rate(z, layer, settings) - penalty * nonzero_fraction(z)


@measure(
    "snr_out",
    "mean over k of |P_k Z_k| / |(I - P_k) Z_k|, of Z^{l+1}",
    r"Signal-to-noise ratio of the subspaces' tokens in $\mathbf{Z}^{\ell+1}$",
    "tap_out",
    ("subspaces",),
)
def snr_out(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """Mean ratio of the subspaces that have tokens. AoT's layers are derived to increase this ratio."""
    U, num_heads = layer.subspaces()
    return subspace_snr(z, U.to(z.dtype), num_heads).nanmean(-1)


@measure("active", "positive activations of the MLP", "Positive activations of the MLPs", "tap_act")
def active(activations: Tensor, layer: Layer, settings: Settings) -> Tensor:
    """Fraction of positive activations: a ViT's counterpart of sparsity, because GELU is never exactly zero."""
    return (activations > 0).float().mean((-2, -1))

"""The contract of a layer: what it computes, and what it offers to readers.

A layer ``Z^l -> Z^{l+1}`` compresses the tokens and then sparsifies them. Either operator may be absent. A reader asks
the layer, which answers None or ``{}`` for "not defined here". No reader looks for a name among the modules.

Shapes: B images, N tokens, d embedding dimensions, K heads (subspaces) of dimension p.
"""

from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn


class TokenLayout(NamedTuple):
    """Which tokens in the layers are patches: ``rows`` x ``columns`` of them, row by row, behind ``prefix`` others.

    The first of the prefix tokens is the CLS token.
    """

    prefix: int
    rows: int
    columns: int


class Subspaces(NamedTuple):
    """The bases U_1, ..., U_K side by side ``(d, K p)``, and their number K."""

    U: Tensor
    num_heads: int


class Map(NamedTuple):
    """A map between two sets, a matrix per head.

    Attributes:
        values: ``(B, K, rows, columns)``.
        rows, columns: what they stand for, such as 'tokens' or 'representatives'.
    """

    values: Tensor
    rows: str = "tokens"
    columns: str = "tokens"


class Compression(nn.Module):
    """The compression operator: normalized tokens ``(B, N, d)`` to what is added to the tokens, ``(B, N, d)``.

    A subclass passes the input of ``maps`` through ``tap_w``, an identity module for forward hooks. Where the operator
    has subspaces, this input is the projected tokens ``x U``, ``(B, N, K p)``. A subclass that sets ``needs_layout``
    gets the ``TokenLayout`` as the second argument of ``forward``.
    """

    needs_layout: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.tap_w = nn.Identity()

    def subspaces(self) -> Subspaces | None:
        """Return the subspaces that R^c is measured against; None where R^c is not defined."""
        return None

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        """Return the maps by name, 'attention' with rows that sum to 1 among them, or ``{}``.

        Args:
            w: the tensor that passed ``tap_w``.
            layout: of the tokens, where the backbone has one.
        """
        return {}


class Sparsification(nn.Module):
    """The sparsification operator: normalized tokens ``(B, N, d)`` to ``(B, N, d)``.

    A subclass passes its sparse code, ``(B, N, m)``, through ``tap_code`` and sets ``lambd``, the sparsity penalty per
    nonzero entry. An operator without a code in this place, such as an MLP, sets ``has_code`` to False: it has no
    ``tap_code``, and its ``lambd`` is None. ``needs_layout`` is as for ``Compression``.
    """

    needs_layout: ClassVar[bool] = False
    has_code = True
    lambd: float | None = None
    returns_code = True  # whether the operator returns its code

    def __init__(self) -> None:
        super().__init__()
        if self.has_code:
            self.tap_code = nn.Identity()

    def fuse(self) -> None:
        """Compute once what depends on the weights alone, for inference."""


class Layer(nn.Module):
    """One layer of a backbone, ``forward(z, layout=None)``: ``(B, N, d) -> (B, N, d)``.

    Attributes:
        compress: the compression operator, or None.
        sparsify: the sparsification operator, or None.
    """

    compress: Compression | None
    sparsify: Sparsification | None

    def __init__(self) -> None:
        super().__init__()
        self.compress = None
        self.sparsify = None

    def taps(self) -> dict[str, nn.Module]:
        """Return the modules that the layer's tensors pass, by name.

        They are those of the two operators, such as ``tap_w`` and ``tap_code``, and its own, such as ``tap_out``.
        """
        holders = [holder for holder in (self, self.compress, self.sparsify) if holder is not None]
        return {
            name: module for holder in holders for name, module in holder.named_children() if name.startswith("tap_")
        }

    def subspaces(self) -> Subspaces | None:
        """Return the subspaces of the compression; None where R^c is not defined."""
        return None if self.compress is None else self.compress.subspaces()

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        """Return the maps of the compression, see ``Compression.maps``."""
        return {} if self.compress is None else self.compress.maps(w, layout)

    def attention(self, w: Tensor, layout: TokenLayout | None = None) -> Tensor | None:
        """Return the attention between tokens, ``(B, K, N, N)``; None where no map is between tokens."""
        between_tokens = (m.values for m in self.maps(w, layout).values() if m.rows == m.columns == "tokens")
        return next(between_tokens, None)

    @property
    def lambd(self) -> float | None:
        """The sparsity penalty per nonzero entry of the code; None without a code."""
        return None if self.sparsify is None else self.sparsify.lambd

    @property
    def returns_code(self) -> bool:
        """Whether the layer's output is its sparse code, so that ``||Z^{l+1}||_0`` counts the code's entries."""
        return self.sparsify is not None and self.sparsify.has_code and self.sparsify.returns_code

    def fuse(self) -> None:
        """Compute once what depends on the weights alone, for inference."""
        if self.sparsify is not None:
            self.sparsify.fuse()


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, each sample of ``(B, ...)`` is zero with a probability,
    and otherwise divided by the probability of being kept. In eval mode it does nothing.

    Raises:
        ValueError: the probability is not in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        _check_rate(probability)
        self.probability = probability
        # A tensor and not a number, which a compiled block would have as a constant: one compilation a layer.
        self.register_buffer("kept", torch.tensor(1.0 - probability), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keeps = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < self.kept
        return x * keeps / self.kept

    def extra_repr(self) -> str:
        return f"{self.probability:g}"


def drop_path_rates(rate: float, depth: int, rule: str = "linear") -> list[float]:
    """The probability of stochastic depth in each layer, first to last.

    Args:
        rate: of the last layer.
        depth: number of layers.
        rule: 'linear', from 0 in the first layer to ``rate`` in the last, as DeiT and MAE have it; or 'constant', as
            XCiT and ToST have it.

    Raises:
        ValueError: the rate is not in [0, 1), or an unknown rule.
    """
    _check_rate(rate)
    if rule == "constant":
        return [rate] * depth
    if rule == "linear":
        return [rate * layer / max(depth - 1, 1) for layer in range(depth)]
    raise ValueError(f"unknown drop_path_rule {rule!r}: choose linear, constant")


def _check_rate(rate: float) -> None:
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate < 1:
        raise ValueError(f"drop_path must be a probability from 0 to below 1, got {rate!r}")


class Block(Layer):
    """A layer of the family, ``(B, N, d) -> (B, N, d)``; for CRATE the paper's Eqs. (17)-(18)::

        Z^{l+1/2} = Z^l + compress(LN(Z^l))
        Z^{l+1}   = sparsify(LN(Z^{l+1/2}))                    residual=False, as in CRATE
        Z^{l+1}   = Z^{l+1/2} + sparsify(LN(Z^{l+1/2}))        residual=True

    ``tap_half`` and ``tap_out`` pass Z^{l+1/2} and Z^{l+1}. With ``layer_scale``, a step that is added is multiplied by
    a learned factor a channel first, ``gamma_compress`` and ``gamma_sparsify``.

    Args:
        embed_dim: d.
        compress: the compression; None leaves the tokens as they are.
        sparsify: the sparsification; None for a layer that only compresses, whose output is Z^{l+1/2}.
        residual: whether the sparsification is added to its input.
        norm_eps: of both LayerNorms.
        drop_path: the probability, in training, that a sample goes without a step that is added (see ``DropPath``); a
            step that is not added is never dropped.
        layer_scale: what the learned factors start at; None for a layer without them.

    Raises:
        ValueError: ``drop_path`` is no probability below 1, or both operators are None.
    """

    def __init__(
        self,
        embed_dim: int,
        compress: Compression | None,
        sparsify: Sparsification | None,
        residual: bool = False,
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        if compress is None and sparsify is None:
            raise ValueError("a layer needs an operator: compress and sparsify are both None")
        if compress is not None:
            self.norm_compress = nn.LayerNorm(embed_dim, norm_eps)
            self.compress = compress
        self.tap_half = nn.Identity()
        if sparsify is not None:
            self.norm_sparsify = nn.LayerNorm(embed_dim, norm_eps)
            self.sparsify = sparsify
        self.residual = residual
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.gamma_compress = self.gamma_sparsify = None
        if layer_scale is not None:
            if compress is not None:
                self.gamma_compress = nn.Parameter(torch.full((embed_dim,), float(layer_scale)))
            if sparsify is not None and residual:
                self.gamma_sparsify = nn.Parameter(torch.full((embed_dim,), float(layer_scale)))
        self.tap_out = nn.Identity()

    @property
    def returns_code(self) -> bool:
        return super().returns_code and not self.residual

    def forward(self, z: Tensor, layout: TokenLayout | None = None) -> Tensor:
        if self.compress is not None:
            out = self._apply_operator(self.compress, self.norm_compress(z), layout)
            z = z + self._scaled(out, self.gamma_compress)
        z_half = self.tap_half(z)
        if self.sparsify is None:
            return self.tap_out(z_half)
        out = self._apply_operator(self.sparsify, self.norm_sparsify(z_half), layout)
        return self.tap_out(z_half + self._scaled(out, self.gamma_sparsify) if self.residual else out)

    @staticmethod
    def _apply_operator(operator: Compression | Sparsification, x: Tensor, layout: TokenLayout | None) -> Tensor:
        return operator(x, layout) if operator.needs_layout else operator(x)

    def _scaled(self, update: Tensor, gamma: Tensor | None) -> Tensor:
        """Return what is added of an operator's output ``(B, N, d)``: scaled, and dropped for some samples."""
        return self.drop_path(update if gamma is None else gamma * update)


def scaled_similarity(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """``softmax(q k^T / sqrt(p))`` in each head: ``(B, N, K p)`` twice to ``(B, K, N, N)``."""
    q_BKNp, k_BKNp = (rearrange(x, "B N (K p) -> B K N p", K=num_heads) for x in (q, k))
    return torch.softmax(q_BKNp @ k_BKNp.mT / q_BKNp.shape[-1] ** 0.5, dim=-1)

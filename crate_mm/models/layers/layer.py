"""The contract of a layer: its computation, and its interface for analysis.

A layer ``Z^l -> Z^{l+1}`` compresses the tokens and then sparsifies them. Either operator may be absent. Methods return
None or ``{}`` for "not defined". No code searches a layer's modules by name.

Shapes: B images, N tokens, d embedding dimensions, K heads (subspaces) of dimension p.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TokenLayout(NamedTuple):
    """Layout of the tokens: ``prefix`` tokens, CLS token first, then ``rows`` x ``columns`` patches, row by row.

    In a mask decoder, the tokens of the classes follow the patches.
    """

    prefix: int
    rows: int
    columns: int


class Subspaces(NamedTuple):
    """The bases U_1, ..., U_K side by side ``(d, K p)``, and their number K."""

    U: Tensor
    num_heads: int


class Map(NamedTuple):
    """A map between two sets of vectors, such as tokens: one matrix per head.

    Attributes:
        values: ``(B, K, rows, columns)``.
        rows: meaning of the third dimension, such as 'tokens' or 'representatives'.
        columns: meaning of the fourth dimension.
    """

    values: Tensor
    rows: str = "tokens"
    columns: str = "tokens"


class Compression(nn.Module):
    """The compression operator: normalized tokens ``(B, N, d)`` to the update that is added to the tokens.

    A subclass passes the input of ``maps`` through ``tap_w``, an identity module for forward hooks. If the operator
    has subspaces, this input is the projected tokens ``x U``, ``(B, N, K p)``. A subclass that sets ``needs_layout``
    gets the ``TokenLayout`` as the second argument of ``forward``.

    Attributes:
        causal: whether a token's update depends only on the token and those before it. The ``forward`` of a causal
            operator has a second argument ``cache``: a dict, empty before the first call, that holds the state that
            later tokens need. With a cache, ``x`` holds only the tokens that follow those of earlier calls.
    """

    needs_layout: ClassVar[bool] = False
    causal: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.tap_w = nn.Identity()

    def subspaces(self) -> Subspaces | None:
        """Return the subspaces of the coding rate R^c; None if R^c is not defined."""
        return None

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        """Return the maps by name, or ``{}``. The rows of a map 'attention' sum to 1.

        Args:
            w: output of ``tap_w``.
            layout: layout of the tokens, if the backbone has one.
        """
        return {}

    def keys(self, w: Tensor) -> Tensor | None:
        """Return the vectors whose inner products compare the tokens, ``(B, N, K p)``, or None.

        Args:
            w: output of ``tap_w``; by default, it is returned if there are subspaces.
        """
        return None if self.subspaces() is None else w


class Sparsification(nn.Module):
    """The sparsification operator: normalized tokens ``(B, N, d)`` to ``(B, N, d)``.

    A subclass passes its sparse code, ``(B, N, m)``, through ``tap_code`` and sets ``lambd``, the sparsity penalty per
    nonzero entry. An operator without a sparse code, such as an MLP, sets ``has_code`` to False: it has no
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
        """Precompute terms that depend only on the weights, for inference."""


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
        """Return by name the taps of the layer (``tap_out``) and of its operators (``tap_w``, ``tap_code``)."""
        holders = [holder for holder in (self, self.compress, self.sparsify) if holder is not None]
        return {
            name: module for holder in holders for name, module in holder.named_children() if name.startswith("tap_")
        }

    def subspaces(self) -> Subspaces | None:
        """Return the subspaces of the compression; None if R^c is not defined."""
        return None if self.compress is None else self.compress.subspaces()

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        """Return the maps of the compression, see ``Compression.maps``."""
        return {} if self.compress is None else self.compress.maps(w, layout)

    def keys(self, w: Tensor) -> Tensor | None:
        """Return the vectors whose inner products compare the tokens, see ``Compression.keys``."""
        return None if self.compress is None else self.compress.keys(w)

    def attention(self, w: Tensor, layout: TokenLayout | None = None) -> Tensor | None:
        """Return the attention between tokens, ``(B, K, N, N)``; None if no map is between tokens.

        Its rows sum to 1. Rows of a map other than 'attention', such as CBSA's similarity, are divided by their sums.
        """
        for name, (values, rows, columns) in self.maps(w, layout).items():
            if rows == columns == "tokens":
                return values if name == "attention" else values / values.sum(-1, keepdim=True)
        return None

    @property
    def lambd(self) -> float | None:
        """The sparsity penalty per nonzero entry of the code; None without a code."""
        return None if self.sparsify is None else self.sparsify.lambd

    @property
    def returns_code(self) -> bool:
        """Whether the layer's output is its sparse code, so that ``||Z^{l+1}||_0`` counts the code's entries."""
        return self.sparsify is not None and self.sparsify.has_code and self.sparsify.returns_code

    def fuse(self) -> None:
        """Precompute terms that depend only on the weights, for inference."""
        if self.sparsify is not None:
            self.sparsify.fuse()


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): zero each sample of ``(B, ...)`` with a probability, in training.

    The other samples are divided by the probability of being kept. In eval mode the module is the identity.

    Raises:
        ValueError: the probability is not in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        _check_rate(probability)
        self.probability = probability
        # A tensor: torch.compile would treat a number as a constant and compile each layer separately.
        self.register_buffer("keep_prob", torch.tensor(1.0 - probability), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keeps = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < self.keep_prob
        return x * keeps / self.keep_prob

    def extra_repr(self) -> str:
        return f"{self.probability:g}"


def drop_path_rates(rate: float, depth: int, rule: str = "linear") -> list[float]:
    """Return the drop probability of each layer, first to last.

    Args:
        rate: probability in the last layer.
        depth: number of layers.
        rule: 'linear', from 0 in the first layer to ``rate`` in the last (DeiT, MAE); or 'constant' (XCiT, ToST).

    Raises:
        ValueError: the rate is not in [0, 1), or the rule is unknown.
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
    """A compression and a sparsification step, ``(B, N, d) -> (B, N, d)`` (CRATE's paper, Eqs. 17 and 18)::

        Z^{l+1/2} = Z^l + compress(LN(Z^l))
        Z^{l+1}   = sparsify(LN(Z^{l+1/2}))                    residual=False, as in CRATE
        Z^{l+1}   = Z^{l+1/2} + sparsify(LN(Z^{l+1/2}))        residual=True

    ``tap_in``, ``tap_half`` and ``tap_out`` pass Z^l, Z^{l+1/2} and Z^{l+1}. With ``layer_scale``, the output of
    each residual branch is multiplied by a learned factor per channel, ``gamma_compress`` or ``gamma_sparsify``.

    Args:
        embed_dim: d.
        compress: the compression; None to skip it.
        sparsify: the sparsification; None to return Z^{l+1/2}.
        residual: whether the sparsification is added to its input.
        norm_eps: epsilon of both LayerNorms.
        drop_path: probability of dropping a residual branch for a sample in training (see ``DropPath``). A step
            without a residual connection is never dropped.
        layer_scale: initial value of the learned factors; None for no factors.
        norm_bias: whether the LayerNorms have a bias.

    Raises:
        ValueError: ``drop_path`` is not a probability below 1, or both operators are None.
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
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        if compress is None and sparsify is None:
            raise ValueError("a layer needs an operator: compress and sparsify are both None")
        self.tap_in = nn.Identity()
        if compress is not None:
            self.norm_compress = nn.LayerNorm(embed_dim, norm_eps, bias=norm_bias)
            self.compress = compress
        self.tap_half = nn.Identity()
        if sparsify is not None:
            self.norm_sparsify = nn.LayerNorm(embed_dim, norm_eps, bias=norm_bias)
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

    def forward(self, z: Tensor, layout: TokenLayout | None = None, cache: dict | None = None) -> Tensor:
        """Return Z^{l+1}; ``cache`` is passed to a causal compression, see ``Compression``."""
        z = self.tap_in(z)
        if self.compress is not None:
            x = self.norm_compress(z)
            out = self._apply_operator(self.compress, x, layout) if cache is None else self.compress(x, cache)
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
        """Scale an operator's output ``(B, N, d)`` and drop it for some samples."""
        return self.drop_path(update if gamma is None else gamma * update)


def head_width(embed_dim: int, num_heads: int, advice: str = "") -> int:
    """Return p = d / K; raise ``ValueError`` unless K divides d."""
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}{advice}")
    return embed_dim // num_heads


def scaled_similarity(q: Tensor, k: Tensor, num_heads: int, causal: bool = False) -> Tensor:
    """Return ``softmax(q k^T / sqrt(p))`` of each head: two ``(B, N, K p)`` to ``(B, K, N, N)``.

    With ``causal``, the similarity with later tokens is -inf.
    """
    q_BKNp, k_BKNp = (rearrange(x, "B N (K p) -> B K N p", K=num_heads) for x in (q, k))
    similarity_BKNN = q_BKNp @ k_BKNp.mT / q_BKNp.shape[-1] ** 0.5
    if causal:
        later = torch.ones_like(similarity_BKNN, dtype=torch.bool).triu(1)
        similarity_BKNN = similarity_BKNN.masked_fill(later, float("-inf"))
    return torch.softmax(similarity_BKNN, dim=-1)


def attend(q_BKNp: Tensor, k_BKMp: Tensor, v_BKMp: Tensor, causal: bool) -> Tensor:
    """Return ``softmax(q k^T / sqrt(p)) v``, ``(B, K, N, p)``. With ``causal``, q are the last N of the M tokens."""
    earlier, mask = k_BKMp.shape[-2] - q_BKNp.shape[-2], None
    if causal and earlier and q_BKNp.shape[-2] > 1:  # a single last token attends to all tokens
        mask = torch.ones(q_BKNp.shape[-2], k_BKMp.shape[-2], dtype=torch.bool, device=q_BKNp.device).tril(earlier)
    return F.scaled_dot_product_attention(q_BKNp, k_BKMp, v_BKMp, mask, is_causal=causal and not earlier)


def with_earlier(cache: dict[str, Tensor], name: str, value_BNd: Tensor) -> Tensor:
    """Append the values of new tokens to the cached values, and return all values, ``(B, M, d)``."""
    cache[name] = torch.cat([cache[name], value_BNd], dim=1) if name in cache else value_BNd
    return cache[name]

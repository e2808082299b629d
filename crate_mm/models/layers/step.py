"""What a layer of the family is, and what it offers to those who look inside.

A layer ``Z^l -> Z^{l+1}`` compresses the tokens and then sparsifies them. It says itself what it has: whoever reads it
asks the step, and takes None for "not defined here". No reader looks for a name among the modules.

Shapes: B images, N tokens, d embedding dimensions, K heads (subspaces) of dimension p.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn


class Subspaces(NamedTuple):
    """The bases U_1, ..., U_K side by side ``(d, K p)``, and their number K."""

    U: Tensor
    num_heads: int


class Compression(nn.Module):
    """The compression step: normalised tokens ``(B, N, d)`` to what is added to the tokens, ``(B, N, d)``.

    A subclass lets pass through ``tap_w``, an identity module for forward hooks, what ``attention`` takes; where the
    step has subspaces, these are the projected tokens ``x U``, ``(B, N, K p)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tap_w = nn.Identity()

    def subspaces(self) -> Subspaces | None:
        """The subspaces that R^c is measured against; None where R^c is not defined."""
        return None

    def attention(self, w: Tensor) -> Tensor | None:
        """The attention matrices ``(B, K, N, N)``, rows summing to 1, of what passed ``tap_w``, or None."""
        return None


class Sparsification(nn.Module):
    """The sparsification step: normalised tokens ``(B, N, d)`` to ``(B, N, d)``.

    A subclass lets its sparse code, ``(B, N, m)``, pass through ``tap_code``, wherever in the step the code is, and
    sets ``lambd``, the price of an entry that is not zero. A step that stands in this place and has no code, as an MLP,
    sets ``has_code`` to False: it has no ``tap_code``, and its ``lambd`` is None.
    """

    has_code = True
    lambd: float | None = None
    returns_code = True  # whether the code is what the step returns

    def __init__(self) -> None:
        super().__init__()
        if self.has_code:
            self.tap_code = nn.Identity()

    def fuse(self) -> None:
        """Compute once what depends on the weights alone, for inference; a step without such a thing does nothing."""


class Step(nn.Module):
    """One layer of a backbone, ``(B, N, d) -> (B, N, d)``, and what it offers to readers.

    ``compress`` and ``sparsify`` are its two steps. A layer without one of them, as a ViT's, leaves the attribute out.
    """

    compress: Compression
    sparsify: Sparsification

    def taps(self) -> dict[str, nn.Module]:
        """The modules that its tensors pass, by name: those of the two steps, such as ``tap_w`` and ``tap_code``, and
        its own, such as ``tap_out``."""
        holders = [self, *(getattr(self, part) for part in ("compress", "sparsify") if hasattr(self, part))]
        return {
            name: module for holder in holders for name, module in holder.named_children() if name.startswith("tap_")
        }

    def subspaces(self) -> Subspaces | None:
        """The subspaces of the compression step; None where R^c is not defined."""
        return self.compress.subspaces() if hasattr(self, "compress") else None

    def attention(self, w: Tensor) -> Tensor | None:
        """The attention matrices ``(B, K, N, N)`` of what passed ``tap_w``; None if there are none."""
        return self.compress.attention(w) if hasattr(self, "compress") else None

    @property
    def lambd(self) -> float | None:
        """The price of an entry of the code that is not zero; None without a code."""
        return self.sparsify.lambd if hasattr(self, "sparsify") else None

    @property
    def returns_code(self) -> bool:
        """Whether the layer's output is its sparse code, so that ``||Z^{l+1}||_0`` counts the code's entries."""
        return hasattr(self, "sparsify") and self.sparsify.has_code and self.sparsify.returns_code

    def fuse(self) -> None:
        """Compute once what depends on the weights alone, for inference."""
        if hasattr(self, "sparsify"):
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


class Block(Step):
    """A layer of the family, ``(B, N, d) -> (B, N, d)``; for CRATE the paper's Eqs. (17)-(18)::

        Z^{l+1/2} = Z^l + compress(LN(Z^l))
        Z^{l+1}   = sparsify(LN(Z^{l+1/2}))                    residual=False, as in CRATE
        Z^{l+1}   = Z^{l+1/2} + sparsify(LN(Z^{l+1/2}))        residual=True

    ``tap_half`` and ``tap_out`` pass Z^{l+1/2} and Z^{l+1}. With ``layer_scale``, a step that is added is multiplied by
    a learned factor a channel first, ``gamma_compress`` and ``gamma_sparsify``.

    Args:
        embed_dim: d.
        compress: the compression step.
        sparsify: the sparsification step.
        residual: whether the sparsification step is added to its input.
        norm_eps: of both LayerNorms.
        drop_path: the probability, in training, that a sample goes without a step that is added (see ``DropPath``); a
            step that is not added is never dropped.
        layer_scale: what the learned factors start at; None for a layer without them.

    Raises:
        ValueError: ``drop_path`` is no probability below 1.
    """

    def __init__(
        self,
        embed_dim: int,
        compress: Compression,
        sparsify: Sparsification,
        residual: bool = False,
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm_compress = nn.LayerNorm(embed_dim, norm_eps)
        self.compress = compress
        self.tap_half = nn.Identity()
        self.norm_sparsify = nn.LayerNorm(embed_dim, norm_eps)
        self.sparsify = sparsify
        self.residual = residual
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.gamma_compress = self.gamma_sparsify = None
        if layer_scale is not None:
            self.gamma_compress = nn.Parameter(torch.full((embed_dim,), float(layer_scale)))
            self.gamma_sparsify = nn.Parameter(torch.full((embed_dim,), float(layer_scale))) if residual else None
        self.tap_out = nn.Identity()

    @property
    def returns_code(self) -> bool:
        return super().returns_code and not self.residual

    def forward(self, z: Tensor) -> Tensor:
        z_half = self.tap_half(z + self._kept(self.compress(self.norm_compress(z)), self.gamma_compress))
        step = self.sparsify(self.norm_sparsify(z_half))
        return self.tap_out(z_half + self._kept(step, self.gamma_sparsify) if self.residual else step)

    def _kept(self, step: Tensor, gamma: Tensor | None) -> Tensor:
        """What is added of a step."""
        return self.drop_path(step if gamma is None else gamma * step)


def scaled_similarity(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """``softmax(q k^T / sqrt(p))`` in each head: ``(B, N, K p)`` twice to ``(B, K, N, N)``."""
    q_BKNp, k_BKNp = (rearrange(x, "B N (K p) -> B K N p", K=num_heads) for x in (q, k))
    return torch.softmax(q_BKNp @ k_BKNp.mT / q_BKNp.shape[-1] ** 0.5, dim=-1)

"""Contract-and-broadcast self-attention, the compression step of CBT; its cost is linear in the number of tokens.

Shapes: B images, N tokens, d embedding dimensions, K heads (subspaces) of dimension p, m representatives.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layer import Compression, Map, Subspaces, TokenLayout, head_width


class CBSA(Compression):
    """Contract-and-broadcast self-attention: ``(B, N, d) -> (B, N, d)``::

        w   = x U, in K heads of p channels
        q   = averages of w over side x side parts of the patch grid: m = side^2 representatives
        A_k = softmax(q_k w_k^T / sqrt(p))               m x N, over the tokens
        r_k = q_k + s_k A_k w_k                          ``step_rep``: s, a number per head
        c_k = softmax(r_k r_k^T / sqrt(p)) r_k           the representatives contract
        CBSA(x) = concat_k(t_k A_k^T c_k) W_o + b_o      ``step_x``: t; A^T broadcasts the contraction to the tokens

    The coding rate R^c uses the subspaces U. On a grid smaller than side x side, a patch is in several averages.
    Source: Wen, Huang and Li, "Towards Interpretable and Efficient Attention: Compressing All by Contracting a Few",
    NeurIPS 2025, arXiv 2509.16875, and its code, github.com/QishuaiWen/CBSA.

    The maps are 'attention', A, from representatives to tokens, and 'similarity', A^T A, between tokens. The rows of
    A^T A do not sum to 1. ``tap_w`` passes ``x U``.

    Args:
        embed_dim: d.
        num_heads: K.
        side: rows and columns of the representatives.
        shifted: average as many of the first tokens as there are patches, as in the authors' code and its published
            weights. With a CLS token, these are the CLS token and all patches except the last, so that each patch is
            one place too late in the grid. If false, average the patches.
        head_dim: p (default: d / K).

    Raises:
        ValueError: K does not divide d and ``head_dim`` is not given, or (in forward without a layout) the tokens do
            not form a square grid, with or without a CLS token.
    """

    needs_layout = True

    def __init__(
        self, embed_dim: int, num_heads: int, side: int = 8, shifted: bool = True, head_dim: int | None = None
    ) -> None:
        super().__init__()
        if head_dim is None:
            head_dim = head_width(embed_dim, num_heads, ": give head_dim")
        self.num_heads = num_heads
        self.side = side
        self.shifted = shifted
        self.proj = nn.Linear(embed_dim, num_heads * head_dim, bias=False)
        self.step_x = nn.Parameter(torch.randn(num_heads, 1, 1))
        self.step_rep = nn.Parameter(torch.randn(num_heads, 1, 1))
        self.out = nn.Linear(num_heads * head_dim, embed_dim)

    def representatives(self, w: Tensor, layout: TokenLayout | None = None) -> Tensor:
        """Return q before it is split into heads: ``(B, N, K p) -> (B, m, K p)``."""
        return grid_averages(w, layout, self.side, self.shifted)

    def _attention(self, w: Tensor, layout: TokenLayout | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q ``(B, K, m, p)``, w ``(B, K, N, p)`` and A ``(B, K, m, N)``."""
        q_BKmp, w_BKNp = (
            rearrange(x, "B N (K p) -> B K N p", K=self.num_heads) for x in (self.representatives(w, layout), w)
        )
        return q_BKmp, w_BKNp, torch.softmax(q_BKmp @ w_BKNp.mT / w_BKNp.shape[-1] ** 0.5, dim=-1)

    def forward(self, x: Tensor, layout: TokenLayout | None = None) -> Tensor:
        q_BKmp, w_BKNp, A_BKmN = self._attention(self.tap_w(self.proj(x)), layout)
        r_BKmp = q_BKmp + self.step_rep * (A_BKmN @ w_BKNp)
        c_BKmp = self.step_x * F.scaled_dot_product_attention(r_BKmp, r_BKmp, r_BKmp)  # scale is 1 / sqrt(p)
        return self.out(rearrange(A_BKmN.mT @ c_BKmp, "B K N p -> B N (K p)"))

    def subspaces(self) -> Subspaces:
        return Subspaces(self.proj.weight.mT, self.num_heads)

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        A_BKmN = self._attention(w, layout)[2]
        return {"attention": Map(A_BKmN, rows="representatives"), "similarity": Map(A_BKmN.mT @ A_BKmN)}


def grid_averages(w: Tensor, layout: TokenLayout | None, side: int, shifted: bool) -> Tensor:
    """Return averages of tokens over side x side parts of the patch grid, ``(B, N, d) -> (B, side^2, d)``.

    Args:
        w: the tokens.
        layout: their layout; None for a square grid with or without a CLS token.
        side, shifted: as for ``CBSA``.
    """
    first, rows, columns = layout or square_layout(w.shape[1])
    first = 0 if shifted else first
    # Use matrix products: the gradient of adaptive_avg_pool2d is not deterministic on GPUs.
    over_rows, over_columns = (
        F.adaptive_avg_pool1d(torch.eye(length, dtype=w.dtype, device=w.device)[None], side)[0].mT
        for length in (rows, columns)
    )
    grid = w[:, first : first + rows * columns].unflatten(1, (rows, columns))
    q = (over_rows @ grid.flatten(2)).unflatten(2, (columns, -1))
    # Expand the first factor: fvcore counts the products from its shape.
    return (over_columns.expand(*q.shape[:2], -1, -1) @ q).flatten(1, 2)


def square_layout(tokens: int) -> TokenLayout:
    """Return the layout of a square grid of patches, with or without a CLS token; raise ``ValueError`` otherwise."""
    side = math.isqrt(tokens)
    if tokens - side**2 not in (0, 1):
        raise ValueError(
            f"CBSA needs the layout of its tokens: {tokens} are no square grid of patches with or without a CLS token"
        )
    return TokenLayout(tokens - side**2, side, side)

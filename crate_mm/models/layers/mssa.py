"""Multi-head subspace self-attention, the compression step of a CRATE layer.

Shapes: B images, N tokens, d embedding dimensions, K heads (subspaces) of dimension p.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layer import Compression, Map, Subspaces, TokenLayout, attend, head_width, scaled_similarity, with_earlier


class MSSA(Compression):
    """Multi-head subspace self-attention: ``(B, N, d) -> (B, N, d)``.

    One projection ``U`` is query, key and value, so each head compares tokens within its subspace::

        SSA_k(x) = softmax(w_k w_k^T / sqrt(p)) w_k,  w_k = x U_k
        MSSA(x)  = concat_k(SSA_k(x)) W_o + b_o

    Source: CRATE's paper, arXiv 2306.01129, Section 2.3, Eqs. (11)-(12), with the learned output projection, Eq. (18).
    As in the official code, a single head of full width (``K = 1`` and ``p = d``) has no output projection. With
    ``tied``, ``W_o = U^T`` without ``b_o``, as in Eqs. (11)-(12) and Table 3. The paper states no factor for this
    projection; here it is 1. With ``scaled``, the output is multiplied by a learned number, ``step_size``.

    With ``causal``, a token attends only to itself and the tokens before it, and the cache holds ``x U``. A single head
    of full width then has an output projection, as in the code of causal CRATE, github.com/crate-lm/crate-lm.

    ``tap_w`` passes the projected tokens ``x U`` of shape ``(B, N, K p)``.

    Args:
        embed_dim: d.
        num_heads: K.
        head_dim: p (default: d / K).
        bias: whether to use ``b_o``.
        tied: whether the output projection is ``U^T``.
        causal: whether the softmax excludes later tokens.
        scaled: whether the output is multiplied by a learned number, as in the decoders of DEPICT.

    Raises:
        ValueError: K does not divide d and ``head_dim`` is not given.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int | None = None,
        bias: bool = True,
        tied: bool = False,
        causal: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        if head_dim is None:
            head_dim = head_width(embed_dim, num_heads, ": give head_dim")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.proj = nn.Linear(embed_dim, num_heads * head_dim, bias=False)
        self.tied, self.causal = tied, causal
        has_output = not tied and (causal or not (num_heads == 1 and head_dim == embed_dim))
        self.out = nn.Linear(num_heads * head_dim, embed_dim, bias) if has_output else nn.Identity()
        self.step_size = nn.Parameter(torch.randn(1)) if scaled else None

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        w = self.tap_w(self.proj(x))
        seen = w if cache is None else with_earlier(cache, "w", w)
        # Three views: autograd then sums the three gradients directly, without copying them back head by head.
        q_BKNp, k_BKMp, v_BKMp = (rearrange(x, "B N (K p) -> B K N p", K=self.num_heads) for x in (w, seen, seen))
        ssa_BKNp = attend(q_BKNp, k_BKMp, v_BKMp, self.causal)
        ssa = rearrange(ssa_BKNp, "B K N p -> B N (K p)")
        return self.project_back(ssa)

    def project_back(self, ssa: Tensor) -> Tensor:
        """Return the operator's output for the heads' outputs side by side, ``(B, N, K p) -> (B, N, d)``."""
        out = F.linear(ssa, self.proj.weight.mT) if self.tied else self.out(ssa)
        return out if self.step_size is None else self.step_size * out

    def subspaces(self) -> Subspaces:
        return Subspaces(self.proj.weight.mT, self.num_heads)

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        return {"attention": Map(scaled_similarity(w, w, self.num_heads, self.causal))}

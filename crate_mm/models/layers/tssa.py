"""Token statistics self-attention, the compression step of ToST; its cost is linear in N.

Shapes: B images, N tokens, d embedding dimensions, K heads (subspaces) of dimension p.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layer import Compression, Map, Subspaces, TokenLayout, head_width


class TSSA(Compression):
    """Token statistics self-attention: ``(B, N, d) -> (B, N, d)``::

        w     = x U + b_u, in K heads of p channels
        s_kn  = sum_c w_knc^2 / sum_n' w_kn'c^2              each channel scaled to unit length over the tokens
        Pi    = softmax over k of (temp_k s_kn)              membership of token n in head k
        m_kc  = sum_n Pi_kn w_knc^2 / (sum_n Pi_kn + 1e-8)   second moment of channel c among the tokens of head k
        TSSA(x) = -concat_k(Pi_kn w_knc / (1 + m_kc)) W_o + b_o

    With ``context_length``, the operator is causal: the sums over n and n' are over a token and those before it, and
    a learned ``denom_bias`` b_kn, which depends on the position n in the text, is added to each of the p terms of s_kn.
    The cache holds the sums, so its size does not grow with the text.

    Tokens are not compared pairwise: there is no attention matrix. The coding rate R^c uses the subspaces U. Source: Wu
    et al., "Token Statistics Transformer", ICLR 2025, arXiv 2412.17810, and its code. The code learns ``W_o`` in place
    of the paper's ``U_k^T``, replaces ``d / eps^2`` and ``tau / n`` by 1, and has one ``temp`` per head.

    ``tap_w`` passes ``x U`` without ``b_u``, the input of R^c. ``tap_pi`` passes Pi, ``(B, K, N)``.

    Args:
        embed_dim: d.
        num_heads: K.
        bias: whether to use ``b_u`` and ``b_o``.
        proj_bias: whether to use ``b_u`` (default: as ``bias``).
        context_length: largest N of a causal operator; None for sums over all tokens.

    Raises:
        ValueError: K does not divide d; (in forward) more tokens than ``context_length``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        proj_bias: bool | None = None,
        context_length: int | None = None,
    ) -> None:
        super().__init__()
        head_width(embed_dim, num_heads)  # raises
        self.num_heads = num_heads
        self.proj = nn.Linear(embed_dim, embed_dim, bias if proj_bias is None else proj_bias)
        self.temp = nn.Parameter(torch.ones(num_heads, 1))
        self.causal = context_length is not None
        self.denom_bias = nn.Parameter(torch.zeros(num_heads, context_length, 1)) if self.causal else None
        self.tap_pi = nn.Identity()
        self.out = nn.Linear(embed_dim, embed_dim, bias)

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        w = self.tap_w(F.linear(x, self.proj.weight))
        w_BKNp, squares_BKNp, pi_BKN = self._membership(w, cache)
        pi_BKN1 = self.tap_pi(pi_BKN).unsqueeze(-1)
        sizes_BKN1 = self._total("pi", pi_BKN1, cache)
        moments_BKNp = self._total("moments", pi_BKN1 * squares_BKNp, cache) / (sizes_BKN1 + 1e-8)
        out_BKNp = -(pi_BKN1 * w_BKNp) / (1 + moments_BKNp)
        return self.out(rearrange(out_BKNp, "B K N p -> B N (K p)").to(w.dtype))

    def _membership(self, w: Tensor, cache: dict | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return w + b_u and its squares, both ``(B, K, N, p)``, and Pi, ``(B, K, N)``."""
        if self.proj.bias is not None:
            w = w + self.proj.bias.to(w.dtype)
        w_BKNp = rearrange(w, "B N (K p) -> B K N p", K=self.num_heads)
        # Statistics over many tokens need full precision under autocast too.
        squares_BKNp = w_BKNp.to(torch.promote_types(w.dtype, torch.float32)).square()
        # The official code clamps the root at 1e-12 in the vision model, the sum in the language model.
        lengths = self._total("squares", squares_BKNp, cache).clamp_min(1e-12 if self.causal else 1e-24)
        s_BKN = (squares_BKNp / lengths).sum(-1)
        if self.causal:
            start = 0 if cache is None else cache.get("length", 0)
            end, known = start + w.shape[1], self.denom_bias.shape[1]
            if end > known:
                raise ValueError(f"TSSA has a denom_bias for {known} tokens (context_length), got {end}")
            s_BKN = s_BKN + w_BKNp.shape[-1] * self.denom_bias[:, start:end, 0]
            if cache is not None:
                cache["length"] = end
        return w_BKNp, squares_BKNp, torch.softmax(s_BKN * self.temp, dim=1)

    def _total(self, name: str, x: Tensor, cache: dict | None) -> Tensor:
        """Return the sum over all tokens, ``(B, K, 1, ...)``, or in a causal operator the running sum at each token."""
        if not self.causal:
            return x.sum(-2, keepdim=True)
        total = x.cumsum(-2)
        if cache is not None:
            total = total + cache.get(name, 0)
            cache[name] = total[..., -1:, :].clone()  # a view would keep the sums at all tokens
        return total

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        return {"membership": Map(self._membership(w)[2].unsqueeze(-2), rows="groups")}

    def subspaces(self) -> Subspaces:
        return Subspaces(self.proj.weight.mT, self.num_heads)

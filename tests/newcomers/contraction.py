"""CBSA: compress all tokens through a few representatives of them (Wen et al., NeurIPS 2025, arXiv 2509.16875)."""

import torch
import torch.nn.functional as F
from torch import nn

from crate_mm.models.layers import Compression, Map, Subspaces
from crate_mm.registry import LAYERS


@LAYERS.register_module()
class NewcomerCBSA(Compression):
    """Map normalized tokens (B, N, d) to (B, N, d), with ``side`` x ``side`` representatives."""

    needs_layout = True

    def __init__(self, embed_dim, num_heads, side=8):
        super().__init__()
        self.num_heads, self.side = num_heads, side
        self.proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.step_rep, self.step_x = (nn.Parameter(torch.randn(num_heads, 1, 1)) for _ in range(2))

    def split(self, w):  # (B, N, K p) to (B, K, N, p)
        return w.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def representatives(self, w, layout):  # averages of the patches, (B, K, m, p), and their attention, (B, K, m, N)
        prefix, rows, columns = layout
        grid = w[:, prefix : prefix + rows * columns].mT.unflatten(-1, (rows, columns))
        q = self.split(F.adaptive_avg_pool2d(grid, self.side).flatten(2).mT)
        return q, (q @ self.split(w).mT / q.shape[-1] ** 0.5).softmax(-1)

    def forward(self, x, layout):
        w = self.tap_w(self.proj(x))
        q, attention = self.representatives(w, layout)
        r = q + self.step_rep * (attention @ self.split(w))
        contracted = F.scaled_dot_product_attention(r, r, r)
        return self.out((self.step_x * attention.mT @ contracted).transpose(1, 2).flatten(2))

    def subspaces(self):
        return Subspaces(self.proj.weight.mT, self.num_heads)

    def maps(self, w, layout):
        attention = self.representatives(w, layout)[1]
        return {"similarity": Map(attention.mT @ attention), "averages": Map(attention, rows="representatives")}

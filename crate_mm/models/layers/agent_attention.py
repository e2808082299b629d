"""Agent attention, a compression step with a few averaged queries; its cost is linear in the number of tokens.

Shapes: B images, N tokens, d embedding dimensions, K heads of dimension p, m agents.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .cbsa import grid_averages
from .layer import Map, TokenLayout
from .softmax_attention import SoftmaxAttention


class AgentAttention(SoftmaxAttention):
    """Softmax self-attention through m agents: ``(B, N, d) -> (B, N, d)``::

        Q_k = averages of the queries q_k over side x side parts of the patch grid: m = side^2 agents
        A_k(x) = softmax(q_k Q_k^T / sqrt(p)) softmax(Q_k k_k^T / sqrt(p)) v_k,  [q, k, v] = x W + b

    The weights are those of ``SoftmaxAttention``. CBSA's authors use this operator in pretrained ViTs, as
    "CBSA-styled" attention: their code has no contraction step (github.com/QishuaiWen/CBSA, CBSA_finetune_vit). Source:
    Han et al., "Agent Attention", ECCV 2024, arXiv 2312.08874, without its biases and convolution.

    ``tap_w`` passes the input. The map 'attention' is the product of the two softmax matrices.

    Args:
        embed_dim, num_heads, bias: as for ``SoftmaxAttention``.
        side, shifted: as for ``CBSA``.

    Raises:
        ValueError: as ``CBSA``.
    """

    needs_layout = True

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True, side: int = 8, shifted: bool = True) -> None:
        super().__init__(embed_dim, num_heads, bias)
        self.side, self.shifted = side, shifted

    def _heads(self, x: Tensor, layout: TokenLayout | None) -> list[Tensor]:
        """Return the agents ``(B, K, m, p)`` and q, k and v ``(B, K, N, p)``."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        agents = grid_averages(q, layout, self.side, self.shifted)
        return [rearrange(part, "B N (K p) -> B K N p", K=self.num_heads) for part in (agents, q, k, v)]

    def forward(self, x: Tensor, layout: TokenLayout | None = None) -> Tensor:
        agents, q, k, v = self._heads(self.tap_w(x), layout)
        contents = F.scaled_dot_product_attention(agents, k, v)  # (B, K, m, p)
        return self.out(rearrange(F.scaled_dot_product_attention(q, agents, contents), "B K N p -> B N (K p)"))

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        agents, q, k, _ = self._heads(w, layout)
        scale = q.shape[-1] ** -0.5
        first, second = (torch.softmax(a @ b.mT * scale, dim=-1) for a, b in ((q, agents), (agents, k)))
        return {"attention": Map(first @ second)}

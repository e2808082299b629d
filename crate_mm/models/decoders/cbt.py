"""CBT's decoder: DEPICT-SA with contract-and-broadcast self-attention, whose cost is linear in the number of tokens.

Source: Wen, Huang and Li, "Towards Interpretable and Efficient Attention: Compressing All by Contracting a Few",
NeurIPS 2025, arXiv 2509.16875, and its code, github.com/QishuaiWen/CBSA; ``OFFICIAL`` declares the decoder's weights.
Shapes: as in ``base``.
"""

from types import SimpleNamespace
from typing import ClassVar

from torch import nn

from ...registry import HEADS
from ..layers import CBSA, Block
from ..official import Official
from .base import MaskDecoder
from .depict_sa import HEAD_DIM, SIZES

SIDE = 10  # rows and columns of the representatives, in the official code

KEY_MAP = (
    (r"cls_emb", r"class_tokens"),
    (r"net\.layers\.(\d+)\.norm\.(weight|bias)", r"blocks.\1.norm_compress.\2"),
    (r"net\.layers\.(\d+)\.fn\.proj\.weight", r"blocks.\1.compress.proj.weight"),
    (r"net\.layers\.(\d+)\.fn\.(step_x|step_rep)", r"blocks.\1.compress.\2"),
    (r"net\.layers\.(\d+)\.fn\.to_out\.(weight|bias)", r"blocks.\1.compress.out.\2"),
    (r"decoder_norm\.(weight|bias)", r"norm.\1"),
    (r"mask_norm\.(weight|bias)", r"mask_norm.\1"),
)


def official_decoder(s: SimpleNamespace) -> dict:
    """Return the config of the decoder with these sizes (see ``Official``)."""
    sizes = {name: getattr(s, name) for name in SIZES}
    return {"type": "CBTDecoder", **sizes, "head_dim": s.inner_dim // s.num_heads}


OFFICIAL = Official(
    source="CBT's decoder",
    signs=("cls_emb", "net.layers.0.fn.proj.weight", "net.layers.0.fn.step_x"),
    key_map=KEY_MAP,
    shapes={
        "cls_emb": "_ num_classes embed_dim",
        "net.layers.0.fn.proj.weight": "inner_dim embed_dim",
        "net.layers.0.fn.step_x": "num_heads _ _",
    },
    counts={"depth": r"net\.layers\.(\d+)\."},
    arguments=SIZES,
    model=official_decoder,
)


@HEADS.register_module()
class CBTDecoder(MaskDecoder):
    """CBT's decoder: patches ``(B, N, d)`` to masks ``(B, C, h, w)``.

    Each layer adds ``CBSA(LN(X))`` to X, the patches followed by the class tokens. The representatives are averages of
    the patches only. A LayerNorm follows the last layer.

    The official code fixes 150 classes and a square grid; this decoder accepts any number of classes and any grid.

    Args:
        embed_dim, num_classes: as in ``MaskDecoder``.
        depth: number of layers.
        num_heads: K.
        head_dim: p, which does not depend on d.
        side: rows and columns of the representatives.
    """

    official: ClassVar[Official] = OFFICIAL

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        depth: int = 3,
        num_heads: int = 3,
        head_dim: int = HEAD_DIM,
        side: int = SIDE,
    ) -> None:
        super().__init__(embed_dim, num_classes)
        operators = (CBSA(embed_dim, num_heads, side, shifted=False, head_dim=head_dim) for _ in range(depth))
        self.blocks = nn.ModuleList(Block(embed_dim, operator, None) for operator in operators)
        self.norm = nn.LayerNorm(embed_dim)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

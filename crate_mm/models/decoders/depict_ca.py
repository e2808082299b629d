"""DEPICT-CA: patches compress each other by self-attention, then class tokens attend to them.

Source and shapes: as in ``base``; ``OFFICIAL`` declares the decoder's weights.
"""

from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...registry import HEADS
from ..layers import MSCA, MSSA, Block, CrossBlock, TokenLayout
from ..official import Argument, Official
from .base import MaskDecoder, head_count
from .depict_sa import HEAD_DIM, tied_attention

CROSS_DEPTH, CROSS_HEAD_DIM = 3, 50  # as in the official code, for any depth and embed_dim

KEY_MAP = (
    (r"cls_emb", r"class_tokens"),
    (r"snet\.layers\.(\d+)\.norm\.(weight|bias)", r"blocks.\1.norm_compress.\2"),
    (r"snet\.layers\.(\d+)\.fn\.proj", r"blocks.\1.compress.proj.weight"),
    (r"snet\.layers\.(\d+)\.fn\.step_size", r"blocks.\1.compress.step_size"),
    (r"cnet\.layers\.(\d+)\.norm\.(weight|bias)", r"cross_blocks.\1.norm_compress.\2"),
    (r"cnet\.layers\.(\d+)\.fn\.proj", r"cross_blocks.\1.compress.proj.weight"),
    (r"cnet\.layers\.(\d+)\.fn\.step_size", r"cross_blocks.\1.compress.step_size"),
    (r"snorm\.(weight|bias)", r"norm.\1"),
    (r"cnorm\.(weight|bias)", r"cross_norm.\1"),
    (r"mask_norm\.(weight|bias)", r"mask_norm.\1"),
)
SIZES = {name: Argument() for name in ("embed_dim", "num_classes", "depth", "num_heads", "cross_depth")}


def official_decoder(s: SimpleNamespace) -> dict:
    """Return the config of the decoder with these sizes (see ``Official``)."""
    return {"type": "DEPICTCA", **{name: getattr(s, name) for name in SIZES}}


OFFICIAL = Official(
    source="DEPICT's cross-attention decoder",
    signs=("cls_emb", "snet.layers.0.fn.proj", "cnet.layers.0.fn.proj"),
    key_map=KEY_MAP,
    shapes={
        "cls_emb": "_ num_classes embed_dim",
        "snet.layers.0.fn.proj": "inner_dim embed_dim",
        "cnet.layers.0.fn.proj": "_ embed_dim",
    },
    counts={"depth": r"snet\.layers\.(\d+)\.", "cross_depth": r"cnet\.layers\.(\d+)\."},
    arguments=SIZES,
    model=official_decoder,
    unpack=head_count("snet.layers.0.fn.proj", HEAD_DIM),
)


@HEADS.register_module()
class DEPICTCA(MaskDecoder):
    """DEPICT's cross-attention decoder: patches ``(B, N, d)`` to masks ``(B, C, h, w)``.

    Each of ``blocks`` adds ``s concat_k(SSA_k(LN(x))) U^T`` to the patches x; a LayerNorm follows the last block. Then
    each of ``cross_blocks`` adds ``s concat_k(SCA_k(e; LN(x))) U^T`` to the class tokens e and leaves x unchanged; a
    LayerNorm of e follows the last block. As in the official code, a cross layer does not normalize its queries e.

    Args:
        embed_dim, num_classes: as in ``MaskDecoder``.
        depth: number of self-attention layers.
        num_heads: K, the same in all layers.
        head_dim: p of the self-attention.
        cross_depth: number of cross-attention layers.
        cross_head_dim: p of the cross-attention.
    """

    official: ClassVar[Official] = OFFICIAL

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        depth: int = 3,
        num_heads: int = 3,
        head_dim: int = HEAD_DIM,
        cross_depth: int = CROSS_DEPTH,
        cross_head_dim: int = CROSS_HEAD_DIM,
    ) -> None:
        super().__init__(embed_dim, num_classes)
        operators = (tied_attention(MSSA, embed_dim, num_heads, head_dim) for _ in range(depth))
        self.blocks = nn.ModuleList(Block(embed_dim, operator, None) for operator in operators)
        self.norm = nn.LayerNorm(embed_dim)
        operators = (tied_attention(MSCA, embed_dim, num_heads, cross_head_dim) for _ in range(cross_depth))
        self.cross_blocks = nn.ModuleList(CrossBlock(embed_dim, operator) for operator in operators)
        self.cross_norm = nn.LayerNorm(embed_dim)

    def decode(self, patches: Tensor, classes: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            patches = block(patches, layout)
        z = torch.cat([self.norm(patches), classes], dim=1)
        for block in self.cross_blocks:
            z = block(z, layout)
        patches, classes = z.tensor_split([patches.shape[1]], dim=1)
        return patches, self.cross_norm(classes)

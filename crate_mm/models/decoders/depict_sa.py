"""DEPICT-SA: patches and class tokens compress each other by self-attention.

Source and shapes: as in ``base``; ``OFFICIAL`` declares the decoder's weights.
"""

from types import SimpleNamespace
from typing import ClassVar

from torch import nn

from ...registry import HEADS
from ..layers import MSSA, Block
from ..official import Argument, Official
from .base import MaskDecoder, head_count

HEAD_DIM = 100  # as in the official code, for any embed_dim

KEY_MAP = (
    (r"cls_emb", r"class_tokens"),
    (r"net\.layers\.(\d+)\.norm\.(weight|bias)", r"blocks.\1.norm_compress.\2"),
    (r"net\.layers\.(\d+)\.fn\.proj", r"blocks.\1.compress.proj.weight"),
    (r"net\.layers\.(\d+)\.fn\.step_size", r"blocks.\1.compress.step_size"),
    (r"decoder_norm\.(weight|bias)", r"norm.\1"),
    (r"mask_norm\.(weight|bias)", r"mask_norm.\1"),
)
# Shapes determine all sizes; ``from_official`` compares them with the sizes that its caller gives.
SIZES = {name: Argument() for name in ("embed_dim", "num_classes", "depth", "num_heads")}


def official_decoder(s: SimpleNamespace) -> dict:
    """Return the config of the decoder with these sizes (see ``Official``)."""
    return {"type": "DEPICTSA", **{name: getattr(s, name) for name in SIZES}}


OFFICIAL = Official(
    source="DEPICT's self-attention decoder",
    signs=("cls_emb", "net.layers.0.fn.proj", "net.layers.0.fn.step_size"),
    key_map=KEY_MAP,
    shapes={"cls_emb": "_ num_classes embed_dim", "net.layers.0.fn.proj": "inner_dim embed_dim"},
    counts={"depth": r"net\.layers\.(\d+)\."},
    arguments=SIZES,
    model=official_decoder,
    unpack=head_count("net.layers.0.fn.proj", HEAD_DIM),
)


def tied_attention(kind: type[MSSA], embed_dim: int, num_heads: int, head_dim: int) -> MSSA:
    """Return DEPICT's operator, ``s concat_k(SSA_k) U^T``, initialized with U from N(0, 1 / d) and s from N(0, 1)."""
    attention = kind(embed_dim, num_heads, head_dim, tied=True, scaled=True)
    nn.init.normal_(attention.proj.weight, std=embed_dim**-0.5)
    return attention


@HEADS.register_module()
class DEPICTSA(MaskDecoder):
    """DEPICT's self-attention decoder: patches ``(B, N, d)`` to masks ``(B, C, h, w)``.

    Each layer adds ``s concat_k(SSA_k(LN(X))) U^T`` to X, the patches followed by the class tokens; U and the scalar s
    are learned. A LayerNorm follows the last layer.

    Args:
        embed_dim, num_classes: as in ``MaskDecoder``.
        depth: number of layers.
        num_heads: K.
        head_dim: p, which does not depend on d.
    """

    official: ClassVar[Official] = OFFICIAL

    def __init__(
        self, embed_dim: int, num_classes: int, depth: int = 3, num_heads: int = 3, head_dim: int = HEAD_DIM
    ) -> None:
        super().__init__(embed_dim, num_classes)
        operators = (tied_attention(MSSA, embed_dim, num_heads, head_dim) for _ in range(depth))
        self.blocks = nn.ModuleList(Block(embed_dim, operator, None) for operator in operators)
        self.norm = nn.LayerNorm(embed_dim)

"""Operators of a layer, in plain PyTorch."""

from .agent_attention import AgentAttention
from .cbsa import CBSA
from .class_attention import ClassAttention, ClassAttentionBlock
from .conv_stem import ConvStem, ConvStemWithCLS, FourierPositions
from .ista import ISTA
from .layer import (
    Block,
    Compression,
    DropPath,
    Layer,
    Map,
    Sparsification,
    Subspaces,
    TokenLayout,
    drop_path_rates,
    head_width,
    scaled_similarity,
)
from .mlp import MLP
from .msca import MSCA, CrossBlock
from .mssa import MSSA
from .overcomplete import OvercompleteISTA
from .sincos import SinCosEmbedding, sincos_table
from .softmax_attention import SoftmaxAttention
from .synthesis import DecoderBlock
from .tokens import (
    ConvEmbedding,
    TokenEmbedding,
    check_images,
    mask_patches,
    patch_grid,
    resize_positions,
    resize_table,
    to_pair,
)
from .tssa import TSSA

__all__ = [
    "CBSA", "ISTA", "MLP", "MSCA", "MSSA", "TSSA", "AgentAttention", "Block", "ClassAttention", "ClassAttentionBlock",
    "Compression", "ConvEmbedding", "ConvStem", "ConvStemWithCLS", "CrossBlock", "DecoderBlock", "DropPath",
    "FourierPositions",
    "Layer", "Map", "OvercompleteISTA", "SinCosEmbedding", "SoftmaxAttention", "Sparsification", "Subspaces",
    "TokenEmbedding", "TokenLayout",
]  # fmt: skip

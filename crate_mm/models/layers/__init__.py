from .class_attention import ClassAttention, ClassAttentionBlock
from .conv_stem import ConvStem, FourierPositions
from .ista import ISTA
from .mlp import MLP
from .mssa import MSSA
from .overcomplete import OvercompleteISTA
from .sincos import SinCosEmbedding, resize_table, sincos_table
from .softmax_attention import SoftmaxAttention
from .step import (
    Block,
    Compression,
    DropPath,
    Sparsification,
    Step,
    Subspaces,
    drop_path_rates,
    scaled_similarity,
)
from .synthesis import DecoderBlock
from .tokens import ConvEmbedding, PatchTokens, TokenEmbedding, check_images, patch_grid, to_pair
from .tssa import TSSA

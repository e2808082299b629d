from .ista import ISTA
from .mssa import MSSA
from .sincos import SinCosEmbedding, resize_table, sincos_table
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
from .tokens import TokenEmbedding, to_pair

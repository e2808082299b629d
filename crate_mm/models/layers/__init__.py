from .ista import ISTA
from .mssa import MSSA
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
from .tokens import TokenEmbedding, to_pair

from .ista import ISTA
from .mssa import MSSA
from .step import Block, Compression, Sparsification, Step, Subspaces, scaled_similarity
from .tokens import TokenEmbedding, to_pair

from .ista import ISTA
from .mssa import MSSA
from .tokens import TokenEmbedding, to_pair

__all__ = ["ISTA", "MSSA", "TokenEmbedding", "to_pair"]

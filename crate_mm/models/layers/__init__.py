from .class_attention import ClassAttention, ClassAttentionBlock
from .conv_stem import ConvStem, FourierPositions
from .ista import ISTA
from .mlp import MLP
from .mssa import MSSA
from .overcomplete import OvercompleteISTA
from .softmax_attention import SoftmaxAttention
from .step import Block, Compression, Sparsification, Step, Subspaces, scaled_similarity
from .tokens import ConvEmbedding, TokenEmbedding, check_images, patch_grid, to_pair
from .tssa import TSSA

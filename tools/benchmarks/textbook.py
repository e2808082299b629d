"""CRATE as the paper's equations are written, to measure against: every product and every N x N matrix is there."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from crate_mm.models import ImageClassifier
from crate_mm.models.layers import ISTA, MSSA, Block


def textbook_mssa(mssa: MSSA, x: Tensor) -> Tensor:
    """Multi-head subspace self-attention, Eqs. (11)-(12)."""
    w = rearrange(mssa.proj(x), "B N (K p) -> B K N p", K=mssa.num_heads)
    attention = torch.softmax(w @ w.mT * mssa.head_dim**-0.5, dim=-1)
    return mssa.out(rearrange(attention @ w, "B K N p -> B N (K p)"))


def textbook_ista(ista: ISTA, x: Tensor) -> Tensor:
    """The shrinkage-thresholding step, Eq. (17), with three products of the tokens with a d x d matrix."""
    D = ista.dictionary
    down, back = F.linear(x, D.mT), F.linear(F.linear(x, D), D.mT)  # x D and x D^T D
    return F.relu(x + ista.step_size * (down - back) - ista.step_size * ista.lambd)


def textbook_block(block: Block, z: Tensor) -> Tensor:
    """One layer, Eqs. (17)-(18)."""
    z = z + textbook_mssa(block.compress, block.norm_compress(z))
    return textbook_ista(block.sparsify, block.norm_sparsify(z))


def textbook_logits(model: ImageClassifier, images: Tensor) -> Tensor:
    """The logits of a CRATE classifier ``(B, classes)``, with the weights of the model itself."""
    z = model.backbone.embedding(images)
    for block in model.backbone.blocks:
        z = textbook_block(block, z)
    return model.head(z)

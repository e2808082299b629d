"""The equations of CRATE and its variants, as a baseline that computes every product and every N x N matrix."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from crate_mm.models import ImageClassifier
from crate_mm.models.layers import ISTA, MLP, MSSA, TSSA, Block, DecoderBlock, OvercompleteISTA, SoftmaxAttention


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


def textbook_overcomplete_ista(step: OvercompleteISTA, x: Tensor) -> Tensor:
    """CRATE-alpha's step: two proximal gradient steps from a code of zeros, and the map back to tokens."""
    D, eta = step.dictionary, step.step_size
    code = x.new_zeros(*x.shape[:-1], D.shape[1])
    for _ in range(2):
        code = F.relu(code + eta * ((x - code @ D.mT) @ D) - eta * step.lambd)
    return code @ (D if step.decoder is None else step.decoder).mT


def textbook_tssa(tssa: TSSA, x: Tensor) -> Tensor:
    """Token statistics self-attention: each subspace's memberships and second moments in turn."""
    w_KBNp = rearrange(tssa.proj(x), "B N (K p) -> K B N p", K=tssa.num_heads)
    unit_KBNp = F.normalize(w_KBNp, dim=2)  # each channel over the tokens
    pi_KBN = torch.softmax(unit_KBNp.square().sum(-1) * tssa.temp[:, :, None], dim=0)
    heads = []
    for w_BNp, pi_BN in zip(w_KBNp, pi_KBN):
        share_BN1 = (pi_BN / (pi_BN.sum(1, keepdim=True) + 1e-8))[..., None]
        moments_B1p = (share_BN1 * w_BNp.square()).sum(1, keepdim=True)
        heads.append(-pi_BN[..., None] * w_BNp / (1 + moments_B1p))
    return tssa.out(torch.cat(heads, dim=-1))


def textbook_softmax_attention(attention: SoftmaxAttention, x: Tensor) -> Tensor:
    """A transformer's multi-head self-attention."""
    q, k, v = rearrange(attention.qkv(x), "B N (three K p) -> three B K N p", three=3, K=attention.num_heads)
    weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
    return attention.out(rearrange(weights @ v, "B K N p -> B N (K p)"))


def textbook_mlp(mlp: MLP, x: Tensor) -> Tensor:
    """A transformer's MLP, with GELU computed from the error function."""
    hidden = mlp.fc1(x)
    return mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def textbook_decoder_block(block: DecoderBlock, y: Tensor) -> Tensor:
    """A layer of CRATE-MAE's decoder."""
    g = block.norm_synthesis(y) @ block.dictionary.mT
    return g - textbook_mssa(block.compress, block.norm_compress(g))

"""The layer-wise measures of the sparse rate reduction, as pure functions of tensors.

Tokens are rows: ``Z`` has shape ``(..., N, d)`` with N tokens of dimension d; the paper writes them as columns. All
functions work on any leading dimensions, any floating dtype of at least 32 bits and any device, and are differentiable.
"""

import torch
from einops import rearrange
from torch import Tensor


def coding_rate(Z: Tensor, eps_squared: float = 0.01) -> Tensor:
    """Lossy coding rate R(Z) in nats, ``(..., N, d) -> (...)``; the paper, Eq. (7).

    ``R(Z) = 1/2 logdet(I + d / (N eps^2) Z^T Z)``, computed on the smaller of the N x N and the d x d Gram matrix:
    by Sylvester's identity both have this determinant.
    """
    N, d = Z.shape[-2:]
    gram = Z @ Z.mT if N <= d else Z.mT @ Z
    identity = torch.eye(gram.shape[-1], dtype=Z.dtype, device=Z.device)
    # The matrix is I plus a positive semidefinite one, so a Cholesky factor exists.
    factor = torch.linalg.cholesky(identity + (d / (N * eps_squared)) * gram)
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def subspace_coding_rate(W: Tensor, num_heads: int, eps_squared: float = 0.01, unit_length: bool = False) -> Tensor:
    """Coding rate R^c(Z; U[K]) in nats of tokens against K subspaces, ``(..., N, K p) -> (...)``; the paper, Eq. (8).

    ``R^c = sum_k 1/2 logdet(I + p / (N eps^2) (U_k^T Z)^T (U_k^T Z))``.

    Args:
        W: the projected tokens ``Z U``, heads side by side.
        num_heads: K.
        eps_squared: the distortion eps^2; the official code uses 0.01.
        unit_length: scale each token to unit length within each head first, as the official code does. A zero token
            stays zero.
    """
    w_KNp = rearrange(W, "... N (K p) -> ... K N p", K=num_heads)
    if unit_length:
        w_KNp = torch.nn.functional.normalize(w_KNp, dim=-1)
    return coding_rate(w_KNp, eps_squared).sum(-1)


def nonzero_fraction(Z: Tensor) -> Tensor:
    """Fraction of non-zero entries ``||Z||_0 / (d N)``, ``(..., N, d) -> (...)``; the paper, Section 3.1 (sparsity)."""
    return (Z != 0).to(torch.float64 if Z.dtype == torch.float64 else torch.float32).mean(dim=(-2, -1))

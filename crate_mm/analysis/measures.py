"""Measures of the sparse rate reduction by layer, as pure functions of tensors.

Tokens are rows: ``Z`` has shape ``(..., N, d)`` with N tokens of dimension d; the paper writes them as columns. All
functions accept any leading dimensions and any device, and are differentiable. Rates are in nats. They are computed in
float64, because float32 rounds away the 1 in I + c Z^T Z if the tokens are many or long. Devices without float64 use
float32. The result is float32, or float64 for float64 tokens.

Source: Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023.
"""

import torch
from einops import rearrange
from torch import Tensor


def coding_rate(Z: Tensor, eps_squared: float = 0.01, unit_length: bool = False) -> Tensor:
    """Lossy coding rate R(Z), ``(..., N, d) -> (...)``; the paper, Eq. (7).

    ``R(Z) = 1/2 logdet(I + d / (N eps^2) Z^T Z)``, computed from the smaller of the N x N and the d x d Gram matrix.
    Both give the same determinant (Sylvester's identity).

    Args:
        Z: the tokens.
        eps_squared: the distortion eps^2; the official code uses 0.01.
        unit_length: scale each token to unit length first. A zero token stays zero.

    Raises:
        ValueError: Z is not floating-point ``(..., N, d)``, ``eps_squared`` is not positive, or the rate is not finite.
    """
    if Z.ndim < 2 or 0 in Z.shape[-2:] or not Z.is_floating_point():
        raise ValueError(f"expected floating-point tokens of shape (..., N, d), got {Z.dtype} of {tuple(Z.shape)}")
    if not eps_squared > 0:
        raise ValueError(f"eps_squared must be positive, got {eps_squared}")
    result = torch.promote_types(Z.dtype, torch.float32)
    Z = _widen(Z)
    if unit_length:
        Z = torch.nn.functional.normalize(Z, dim=-1)
    N, d = Z.shape[-2:]
    gram = Z @ Z.mT if N <= d else Z.mT @ Z
    identity = torch.eye(gram.shape[-1], dtype=Z.dtype, device=Z.device)
    # I plus a positive semidefinite matrix is positive definite, so it has a Cholesky factor.
    factor, info = torch.linalg.cholesky_ex(identity + (d / (N * eps_squared)) * gram)
    if info.any():
        raise ValueError("the coding rate is not finite: the tokens have NaN or infinity, or eps_squared is too small")
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(result)


def subspace_coding_rate(W: Tensor, num_heads: int, eps_squared: float = 0.01, unit_length: bool = False) -> Tensor:
    """Coding rate R^c(Z; U[K]) of tokens against K subspaces, ``(..., N, K p) -> (...)``; the paper, Eq. (8).

    ``R^c = sum_k 1/2 logdet(I + p / (N eps^2) (U_k^T Z)^T (U_k^T Z))``.

    Args:
        W: the projected tokens ``Z U``, heads side by side.
        num_heads: K.
        eps_squared: the distortion eps^2; the official code uses 0.01.
        unit_length: scale each token to unit length within each head first, as the official code does. A zero token
            stays zero.

    Raises:
        ValueError: as in ``coding_rate``, or K does not divide the last dimension.
    """
    if W.ndim < 2 or W.shape[-1] % num_heads:
        raise ValueError(f"{num_heads} heads do not divide projected tokens of shape {tuple(W.shape)}")
    return coding_rate(rearrange(W, "... N (K p) -> ... K N p", K=num_heads), eps_squared, unit_length).sum(-1)


def rate_reduction(
    Z: Tensor, U: Tensor, num_heads: int, eps_squared: float = 0.01, unit_length: bool = False
) -> Tensor:
    """Rate reduction ``R(Z) - R^c(Z; U[K])``, ``(..., N, d) -> (...)``; the paper, Eqs. (7), (8).

    Args:
        Z: the tokens.
        U: bases of the subspaces side by side, ``(d, K p)``, such as ``layer.subspaces().U``.
        num_heads, eps_squared, unit_length: arguments of ``subspace_coding_rate``.
    """
    result = torch.promote_types(Z.dtype, torch.float32)
    rate = coding_rate(_widen(Z), eps_squared, unit_length)
    return (rate - subspace_coding_rate(_widen(Z) @ _widen(U), num_heads, eps_squared, unit_length)).to(result)


def sparse_rate_reduction(
    Z: Tensor, U: Tensor, num_heads: int, lambd: float = 0.1, eps_squared: float = 0.01, unit_length: bool = False
) -> Tensor:
    """Objective that the paper maximizes: ``R(Z) - R^c(Z; U[K]) - lambda ||Z||_0``, ``(..., N, d) -> (...)``.

    ``||Z||_0`` is the number of nonzero entries. No gradient flows through ``||Z||_0``.

    Args:
        lambd: lambda, the sparsity penalty per nonzero entry.
        Z, U, num_heads, eps_squared, unit_length: arguments of ``rate_reduction``.
    """
    entries = Z.shape[-1] * Z.shape[-2]
    return rate_reduction(Z, U, num_heads, eps_squared, unit_length) - lambd * entries * nonzero_fraction(Z)


def nonzero_fraction(Z: Tensor) -> Tensor:
    """Fraction of nonzero entries ``||Z||_0 / (d N)``, ``(..., N, d) -> (...)``; the paper, Section 3.1 (sparsity)."""
    return (Z != 0).to(torch.float64 if Z.dtype == torch.float64 else torch.float32).mean(dim=(-2, -1))


def subspace_gram(U: Tensor, normalize: bool = True) -> Tensor:
    """Gram matrix ``[U_1..U_K]^T [U_1..U_K]``, ``(d, K p) -> (K p, K p)``; the paper, Figure 7.

    Args:
        U: bases of the subspaces side by side.
        normalize: scale each column to unit length first, as in the figure.
    """
    result = torch.promote_types(U.dtype, torch.float32)
    U = _widen(U)
    if normalize:
        U = torch.nn.functional.normalize(U, dim=-2)
    return (U.mT @ U).to(result)


def subspace_incoherence(U: Tensor, num_heads: int) -> Tensor:
    """Mean absolute cosine between basis vectors of different heads, ``(d, K p) -> ()``.

    The value is 0 for orthogonal subspaces, 1 if all basis vectors are equal, and about ``sqrt(2 / (pi d))`` for random
    vectors. The paper shows the Gram matrix (Figure 7), but does not define this mean.

    Raises:
        ValueError: K is below 2, or does not divide the number of basis vectors.
    """
    if num_heads < 2 or U.shape[-1] % num_heads:
        raise ValueError(
            f"incoherence needs at least two heads that divide {U.shape[-1]} basis vectors, got {num_heads}"
        )
    gram = subspace_gram(U).abs()
    p = U.shape[-1] // num_heads
    within = torch.block_diag(*[torch.ones(p, p, dtype=torch.bool, device=U.device)] * num_heads)
    return gram[~within].mean()


def subspace_snr(Z: Tensor, U: Tensor, num_heads: int) -> Tensor:
    """Signal-to-noise ratio of each subspace's tokens, ``(..., N, d) -> (..., K)``; Wang et al., ICML 2025, Section 3.

    ``SNR_k = ||P_k Z_k|| / ||(I - P_k) Z_k||``. P_k is the orthogonal projection onto the span of U_k; for orthonormal
    bases, as in Wang et al., P_k is ``U_k U_k^T``. Z_k are the tokens whose projection is longer onto subspace k than
    onto any other subspace. Wang et al. assume this partition of the tokens; here it is computed from the tokens. The
    ratio is NaN for a subspace without tokens. If a subspace spans the whole space, there is no noise: the ratio is
    infinite or divides by rounding errors.

    Args:
        Z: the tokens.
        U: bases of the subspaces side by side, ``(d, K p)``, such as ``layer.subspaces().U``.
        num_heads: K.

    Raises:
        ValueError: K does not divide the number of basis vectors.
    """
    if U.shape[-1] % num_heads:
        raise ValueError(f"{num_heads} heads do not divide {U.shape[-1]} basis vectors")
    result = torch.promote_types(Z.dtype, torch.float32)
    Z = _widen(Z)
    Q_Kdp = torch.linalg.qr(rearrange(_widen(U), "d (K p) -> K d p", K=num_heads)).Q
    signal = (Z.unsqueeze(-3) @ Q_Kdp).square().sum(-1).mT  # (..., N, K)
    noise = (Z.square().sum(-1, keepdim=True) - signal).clamp(min=0)
    own = torch.nn.functional.one_hot(signal.argmax(-1), num_heads)
    return ((signal * own).sum(-2) / (noise * own).sum(-2)).sqrt().to(result)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()

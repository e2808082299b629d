"""Use of sparse codes and subspaces, as pure functions of tensors.

Shapes: B images, N tokens, m atoms of the dictionary, K heads of p basis vectors, C classes.
"""

import torch
from einops import rearrange
from torch import Tensor


def atom_usage(code: Tensor) -> Tensor:
    """Return the fraction of tokens with a nonzero entry for each atom, ``(..., N, m) -> (..., m)``."""
    return (code != 0).to(torch.promote_types(code.dtype, torch.float32)).mean(-2)


def head_energy(w: Tensor, num_heads: int) -> Tensor:
    """Return the fraction of energy in each head's subspace, ``(..., N, K p) -> (..., K)``.

    It is ``sum_n |U_k^T z_n|^2 / sum_jn |U_j^T z_n|^2``.

    Args:
        w: the projected tokens ``Z U``, heads side by side.
        num_heads: K.

    Raises:
        ValueError: K does not divide the last dimension.
    """
    if w.ndim < 2 or w.shape[-1] % num_heads:
        raise ValueError(f"{num_heads} heads do not divide projected tokens of shape {tuple(w.shape)}")
    w = w.to(torch.promote_types(w.dtype, torch.float32))
    energy = rearrange(w.square(), "... N (K p) -> ... K (N p)", K=num_heads).sum(-1)
    return energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)


def zero_reasons(x: Tensor, stepped: Tensor, code: Tensor) -> Tensor:
    """Return why entries of a code are zero, as counts ``(5,)``.

    In order: entries that were negative or zero before the step (``x``); that the dictionary pushed to zero or below
    (``stepped``); that the threshold removed; nonzero entries that were negative or zero before; all nonzero entries.

    Args:
        x: input of the ISTA step, ``(..., N, d)``.
        stepped: the input after the gradient step, before threshold and ReLU.
        code: the output.
    """
    zero, negative = code == 0, x <= 0
    by_dictionary = zero & ~negative & (stepped <= 0)
    groups = (zero & negative, by_dictionary, zero & ~negative & ~by_dictionary, ~zero & negative, ~zero)
    return torch.stack([group.sum() for group in groups])

"""Statistics of sparse codes and subspaces, as pure functions of tensors.

Shapes: B images, N tokens, m atoms of the dictionary, K heads of p basis vectors, C classes.
"""

import torch
from einops import rearrange
from torch import Tensor


def atom_usage(code: Tensor) -> Tensor:
    """Return the fraction of tokens with a nonzero entry for each atom, ``(..., N, m) -> (..., m)``."""
    return (code != 0).to(torch.promote_types(code.dtype, torch.float32)).mean(-2)


def code_overlap(use: Tensor) -> Tensor:
    """Return the overlap of atom usage between classes, ``(C, m) -> (C, C)``.

    It is ``sum_i min(u_ai, u_bi) / sum_i max(u_ai, u_bi)``: 1 for equal usage, 0 for disjoint atoms. A class that uses
    no atom has overlap 0 with all others.

    Args:
        use: for each class the fraction of tokens that use each atom.
    """
    low = torch.minimum(use[:, None], use[None]).sum(-1)
    high = torch.maximum(use[:, None], use[None]).sum(-1)
    return torch.where(high > 0, low / high.clamp_min(1e-30), torch.eye(len(use), dtype=use.dtype, device=use.device))


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


def head_agreement(attention: Tensor) -> Tensor:
    """Return the cosine similarity of the heads' attention rows, ``(..., K, N) -> (..., K, K)``."""
    unit = torch.nn.functional.normalize(attention, dim=-1)
    return unit @ unit.mT

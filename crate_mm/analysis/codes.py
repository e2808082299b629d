"""What sparse codes and subspaces are used for, as pure functions of tensors.

Shapes: B images, N tokens, m directions of the dictionary, K heads of p directions, C classes.
"""

import torch
from einops import rearrange
from torch import Tensor


def atom_usage(code: Tensor) -> Tensor:
    """The share of tokens that use each direction, that is have a non-zero entry in it: ``(..., N, m) -> (..., m)``."""
    return (code != 0).to(torch.promote_types(code.dtype, torch.float32)).mean(-2)


def code_overlap(use: Tensor) -> Tensor:
    """How alike classes use the directions, ``(C, m) -> (C, C)``: ``sum_i min(u_ai, u_bi) / sum_i max(u_ai, u_bi)``.

    1 for classes that use each direction as often as the other does, 0 for classes that share none. A class that uses
    no direction is unlike all others.

    Args:
        use: of each class the share of tokens that use each direction.
    """
    low = torch.minimum(use[:, None], use[None]).sum(-1)
    high = torch.maximum(use[:, None], use[None]).sum(-1)
    return torch.where(high > 0, low / high.clamp_min(1e-30), torch.eye(len(use), dtype=use.dtype, device=use.device))


def head_energy(w: Tensor, num_heads: int) -> Tensor:
    """The share of the tokens' energy in each head's subspace, ``(..., N, K p) -> (..., K)``:
    ``sum_n |U_k^T z_n|^2 / sum_jn |U_j^T z_n|^2``.

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
    """How alike the heads attend: cosines between their rows of attention, ``(..., K, N) -> (..., K, K)``."""
    unit = torch.nn.functional.normalize(attention, dim=-1)
    return unit @ unit.mT

"""Statistics of sparse codes, as pure functions of tensors.

Shapes: N tokens, m atoms of the dictionary.
"""

import torch
from torch import Tensor


def atom_usage(code: Tensor) -> Tensor:
    """Return the fraction of tokens with a nonzero entry for each atom, ``(..., N, m) -> (..., m)``."""
    return (code != 0).to(torch.promote_types(code.dtype, torch.float32)).mean(-2)


def zero_reasons(x: Tensor, stepped: Tensor, code: Tensor) -> Tensor:
    """Return the counts of a code's zeros by reason, and of its nonzero entries, ``(5,)``.

    In order: zeros not positive in ``x``; other zeros not positive in ``stepped`` (set by the dictionary); all other
    zeros (set by the threshold); nonzero entries not positive in ``x``; all nonzero entries.

    Args:
        x: input of the ISTA step, ``(..., N, d)``.
        stepped: ``x`` after the gradient step, before threshold and ReLU.
        code: output of the ISTA step.
    """
    zero, negative = code == 0, x <= 0
    by_dictionary = zero & ~negative & (stepped <= 0)
    groups = (zero & negative, by_dictionary, zero & ~negative & ~by_dictionary, ~zero & negative, ~zero)
    return torch.stack([group.sum() for group in groups])

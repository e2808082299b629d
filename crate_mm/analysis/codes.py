"""Statistics of sparse codes, as pure functions of tensors.

Shapes: N tokens, m atoms of the dictionary.
"""

import torch
from torch import Tensor


def atom_usage(code: Tensor) -> Tensor:
    """Return the fraction of tokens with a nonzero entry for each atom, ``(..., N, m) -> (..., m)``."""
    return (code != 0).to(torch.promote_types(code.dtype, torch.float32)).mean(-2)


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

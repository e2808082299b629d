"""Two steps of ISTA with an overcomplete dictionary, the sparsification step of CRATE-alpha.

Shapes: B images, N tokens, d embedding dimensions, m atoms of the dictionary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import Sparsification


class OvercompleteISTA(Sparsification):
    """Two proximal gradient steps from zero to a sparse code, then decoding: ``(B, N, d) -> (B, N, d)``::

        A1 = ReLU(eta x D - eta lambda)                          from A0 = 0
        A2 = ReLU(A1 + eta (x - A1 D^T) D - eta lambda)
        OvercompleteISTA(x) = A2 D1^T                            decoupled=True;  else A2 D^T

    Tokens ``x`` are rows; the dictionaries ``D`` and ``D1`` are ``d x m``. Source: Yang et al., "Scaling White-Box
    Transformers for Vision", NeurIPS 2024, arXiv 2405.20299, and its code.

    The output is not the code: ``tap_code`` passes the code A2, ``(B, N, m)``; ``tap_code1`` passes A1. Dictionaries
    start Kaiming-uniform with fan-in d, as in the authors' JAX code; their PyTorch code has fan-in m.

    Args:
        embed_dim: d.
        ratio: m / d.
        step_size: eta.
        lambd: lambda.
        decoupled: whether decoding has its own dictionary ``D1``.

    Raises:
        ValueError: ``step_size`` or ``lambd`` is not a finite number, or ``ratio`` not a positive integer.
    """

    returns_code = False

    def __init__(
        self, embed_dim: int, ratio: int = 4, step_size: float = 0.1, lambd: float = 0.1, decoupled: bool = True
    ) -> None:
        super().__init__()
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in (step_size, lambd)):
            raise ValueError(
                f"OvercompleteISTA needs finite numbers as step_size and lambd, got {step_size!r}, {lambd!r}"
            )
        if not isinstance(ratio, int) or ratio < 1:
            raise ValueError(f"OvercompleteISTA needs a positive integer as ratio, got {ratio!r}")
        self.step_size = step_size
        self.lambd = lambd
        self.tap_code1 = nn.Identity()
        self.dictionary = nn.Parameter(torch.empty(embed_dim, ratio * embed_dim))
        self.decoder = nn.Parameter(torch.empty_like(self.dictionary)) if decoupled else None
        for value in self.parameters():
            nn.init.kaiming_uniform_(value, mode="fan_out")  # PyTorch's fan-out of a d x m tensor is d

    def forward(self, x: Tensor) -> Tensor:
        D, eta = self.dictionary, self.step_size
        encoder, threshold = eta * D.mT, eta * self.lambd
        a1 = self.tap_code1((F.linear(x, encoder) - threshold).relu())
        a2 = self.tap_code((a1 + F.linear(x - F.linear(a1, D), encoder) - threshold).relu())
        return F.linear(a2, D if self.decoder is None else self.decoder)

    def extra_repr(self) -> str:
        d, m = self.dictionary.shape
        return f"{d}, {m} atoms, step_size={self.step_size}, lambd={self.lambd}, decoupled={self.decoder is not None}"

"""The iterative shrinkage-thresholding step, the sparsification step of a CRATE layer.

Shapes: B images, N tokens, d embedding dimensions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import Sparsification

# PyTorch before 2.7 cannot distinguish an export from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class ISTA(Sparsification):
    """One proximal gradient step towards a sparse, non-negative code: ``(B, N, d) -> (B, N, d)``.

    ``ISTA(x) = ReLU(x + eta (x D - x D^T D) - eta lambda)`` for tokens ``x`` as rows, with a ``d x d`` dictionary
    ``D``, step size ``eta`` and sparsity weight ``lambda``. Source: CRATE's paper, arXiv 2306.01129, Eq. (17).

    The official code needs three token-sized products. This module needs two for few tokens, and one, ``x M`` with
    ``M = D - D^T D``, for many tokens or after ``fuse``. ISTA has no residual connection. ``tap_code`` passes
    the output, which is the code.

    Args:
        embed_dim: d.
        step_size: eta.
        lambd: lambda.

    Raises:
        ValueError: ``step_size`` or ``lambd`` is not a finite number.
        RuntimeError: (in forward) training after ``fuse``.
    """

    def __init__(self, embed_dim: int, step_size: float = 0.1, lambd: float = 0.1) -> None:
        super().__init__()
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in (step_size, lambd)):
            raise ValueError(f"ISTA needs finite numbers as step_size and lambd, got {step_size!r} and {lambd!r}")
        self.step_size = step_size
        self.lambd = lambd
        self.many_tokens = 2 * embed_dim  # from this many tokens per batch on, one product with M is cheaper
        self.dictionary = nn.Parameter(torch.empty(embed_dim, embed_dim))
        nn.init.kaiming_uniform_(self.dictionary)
        self.register_buffer("folded", None, persistent=False)
        self.register_buffer("threshold", None, persistent=False)

    @torch.no_grad()
    def fuse(self) -> None:
        """Precompute ``eta M`` for inference. The dictionary must not change afterwards."""
        D = self.dictionary.double()
        self.folded = (self.step_size * (D - D.mT @ D)).mT.to(self.dictionary.dtype).contiguous()
        self.threshold = torch.full_like(self.folded[0], -self.step_size * self.lambd)

    def forward(self, x: Tensor) -> Tensor:
        if self.folded is not None:
            if self.training or (torch.is_grad_enabled() and self.dictionary.requires_grad):
                raise RuntimeError(
                    "a fused model is for inference only, without gradients of its dictionaries: use it in eval mode "
                    "under torch.no_grad() or torch.inference_mode(), and build a new model to train"
                )
            return self.tap_code(self._shrink(x, F.linear(x, self.folded, self.threshold)))
        D = self.dictionary
        num_tokens = x.numel() // x.shape[-1]
        if _is_exporting() or num_tokens < self.many_tokens:  # an exported model must accept any number of tokens
            step = F.linear(x - F.linear(x, D), self.step_size * D.T)  # two token-sized products
        else:
            step = F.linear(x, self.step_size * (D - D.T @ D).T)  # x M: one token-sized and one d x d x d product
        return self.tap_code(self._shrink(x, step, self.step_size * self.lambd))

    @staticmethod
    def _shrink(x: Tensor, step: Tensor, threshold: float = 0.0) -> Tensor:
        """Return ``ReLU(x + step - threshold)``, in place in ``step`` if ``step`` has the dtype of ``x``.

        ``x`` is added outside the products, so that it keeps its full precision under autocast.
        """
        code = step.add_(x) if step.dtype == x.dtype else step + x
        return (code.sub_(threshold) if threshold else code).relu_()

    def extra_repr(self) -> str:
        return f"{self.dictionary.shape[0]}, step_size={self.step_size}, lambd={self.lambd}"

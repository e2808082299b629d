"""Heads: tokens to logits, and decoders: patches to the logits of each patch.

Shapes: B images, 1 + N tokens (CLS first), d embedding dimensions, h x w patches.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import HEADS
from .rate_loss import at_least_float32

POOLS = {
    "cls": lambda tokens: tokens[:, 0],
    "mean": lambda tokens: tokens.mean(dim=1),  # over all tokens, the CLS token included, as in the official code
}


class Head(nn.Module):
    """A module from tokens ``(B, 1 + N, d)`` to logits ``(B, num_classes)``.

    Attributes:
        num_classes: number of classes; 0 for a head that returns features.
        pool: how the tokens are pooled, a name of ``POOLS``; None for another method.
    """

    num_classes: int
    pool: str | None = None

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the features of the samples, ``(B, d)``.

        Raises:
            ValueError: the head defines no features.
        """
        raise ValueError(f"{type(self).__name__} has no features: it defines no pooled(tokens)")


@HEADS.register_module()
class LinearHead(Head):
    """LayerNorm and Linear on one pooled token: ``(B, 1 + N, d) -> (B, num_classes)``.

    Args:
        in_dim: d; the classifier sets it from its backbone.
        num_classes: number of classes. 0 omits the Linear and returns its input features, ``(B, d)``.
        pool: 'cls' for the CLS token, 'mean' for the mean of all tokens.
        norm: whether to use a LayerNorm; not needed after a backbone that ends with one, such as ViT.
        norm_eps: epsilon of the LayerNorm.
        init_std: initial standard deviation of the Linear's weight, with zero bias (default: PyTorch's
            initialization).

    Raises:
        ValueError: unknown ``pool``, or a negative number of classes.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        pool: str = "cls",
        norm: bool = True,
        norm_eps: float = 1e-5,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}: choose {', '.join(POOLS)}")
        if num_classes is None or num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        self.num_classes = num_classes
        self.pool = pool
        self.norm = nn.LayerNorm(in_dim, norm_eps) if norm else nn.Identity()
        self.fc = nn.Linear(in_dim, num_classes) if num_classes else nn.Identity()
        if init_std is not None and num_classes:
            nn.init.normal_(self.fc.weight, std=init_std)
            nn.init.zeros_(self.fc.bias)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the pooled token of each image, ``(B, d)``."""
        return POOLS[self.pool](tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.norm(self.pooled(tokens)))

    def extra_repr(self) -> str:
        return f"pool={self.pool}"


@HEADS.register_module()
class LinearDecoder(nn.Module):
    """LayerNorm and Linear on each patch: ``(B, N, d)`` and the grid ``(h, w)`` to logits ``(B, num_classes, h, w)``.

    Args:
        embed_dim: d; the task sets it from its backbone.
        num_classes: number of classes, at least 1.
        norm: whether to use a LayerNorm; not needed after a backbone that ends with one, such as ViT.

    Raises:
        ValueError: ``num_classes`` is less than 1.
    """

    def __init__(self, embed_dim: int, num_classes: int, norm: bool = True) -> None:
        super().__init__()
        if num_classes is None or num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()
        self.fc = nn.Linear(embed_dim, num_classes)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.fc(self.norm(patches)).mT.unflatten(2, grid)


class ProjectionHead(nn.Module):
    """DINO's head: an MLP of three layers, ``(B, d) -> (B, p)``, whose outputs have unit length.

    Args:
        in_dim: d.
        hidden_dim: width of both hidden layers.
        out_dim: p.
        norm: apply a LayerNorm first, for tokens that have not passed one.
        prototypes: for DINO, the number of unit vectors that the outputs are compared with: ``(B, prototypes)``.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int = 2048, out_dim: int = 256, norm: bool = False, prototypes: int | None = None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim) if norm else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim), nn.GELU(),
            nn.Linear(hidden_dim, out_dim),
        )  # fmt: skip
        for linear in self.mlp[::2]:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.prototypes = nn.Linear(out_dim, prototypes, bias=False) if prototypes else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(at_least_float32(self.mlp(self.norm(x))), dim=-1)
        return x if self.prototypes is None else F.linear(x, F.normalize(self.prototypes.weight, dim=-1))

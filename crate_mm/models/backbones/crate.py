"""CRATE, the white-box transformer: each layer compresses (MSSA) and then sparsifies (ISTA) the tokens.

Source: Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023, arXiv 2306.01129.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions.
"""

from torch import Tensor, nn

from ...registry import BACKBONES
from ..layers import ISTA, MSSA, TokenEmbedding
from .arch import Arch, resolve_arch

ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=384, depth=12, num_heads=6),
    "small": Arch(embed_dim=576, depth=12, num_heads=12),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "large": Arch(embed_dim=1024, depth=24, num_heads=16),
}


class CRATEBlock(nn.Module):
    """One layer, ``(B, 1 + N, d) -> (B, 1 + N, d)``; the paper, Eqs. (17)-(18)::

        Z^{l+1/2} = Z^l + MSSA(LN(Z^l))
        Z^{l+1}   = ISTA(LN(Z^{l+1/2}))

    ``tap_half`` and ``tap_out`` pass Z^{l+1/2} and Z^{l+1}, and ``mssa.tap_w`` the projected tokens; they are identity
    modules for forward hooks to read from (see ``crate_mm.analysis.capture``).
    """

    def __init__(self, embed_dim: int, num_heads: int, step_size: float, lambd: float, head_dim: int | None = None):
        super().__init__()
        self.norm_mssa = nn.LayerNorm(embed_dim)
        self.mssa = MSSA(embed_dim, num_heads, head_dim)
        self.tap_half = nn.Identity()
        self.norm_ista = nn.LayerNorm(embed_dim)
        self.ista = ISTA(embed_dim, step_size, lambd)
        self.tap_out = nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        z_half = self.tap_half(z + self.mssa(self.norm_mssa(z)))
        return self.tap_out(self.ista(self.norm_ista(z_half)))


@BACKBONES.register_module()
class CRATE(nn.Module):
    """CRATE backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    Args:
        arch: a name of ``ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square.
        patch_size: patch height and width in pixels, one number if square.
        in_channels: image channels C.
        ista_step_size: eta of Eq. (17).
        ista_lambda: lambda of Eq. (17).
        head_dim: dimension p of each head's subspace; d / K if not given.

    Raises:
        ValueError: unknown ``arch``, or sizes that do not divide.
    """

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        ista_step_size: float = 0.1,
        ista_lambda: float = 0.1,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        embed_dim, depth, num_heads = resolve_arch(arch, ARCHS)
        self.embed_dim = embed_dim
        self.embedding = TokenEmbedding(img_size, patch_size, in_channels, embed_dim)
        self.blocks = nn.ModuleList(
            CRATEBlock(embed_dim, num_heads, ista_step_size, ista_lambda, head_dim) for _ in range(depth)
        )

    @property
    def img_size(self) -> tuple[int, int]:
        return self.embedding.img_size

    @property
    def in_channels(self) -> int:
        return self.embedding.in_channels

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """The position embeddings by name, each with the (rows, columns) of patches that it is for."""
        return {"embedding.pos_embed": self.embedding.grid_size}

    def fuse(self) -> "CRATE":
        """Fold each layer's dictionary into one matrix, for faster inference; a fused model refuses to train."""
        for block in self.blocks:
            block.ista.fuse()
        return self

    def forward(self, images: Tensor) -> Tensor:
        z = self.embedding(images)
        for block in self.blocks:
            z = block(z)
        return z

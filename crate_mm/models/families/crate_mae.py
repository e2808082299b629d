"""CRATE-MAE: CRATE as a masked autoencoder; its encoder as a backbone, its decoder, and its authors' weights.

Source: Pai et al., "Masked Completion via Structured Diffusion with White-Box Transformers", ICLR 2024, arXiv
2404.02446, and the official code, github.com/Ma-Lab-Berkeley/CRATE, whose checkpoints ``CRATEMAE.translate`` reads.
Shapes: B images, C channels, H x W pixels, N patches of h x w pixels, d embedding dimensions.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from ...registry import BACKBONES
from ..arch import Sizes, resolve_arch
from ..layers import MSSA, DecoderBlock, SinCosEmbedding, TokenLayout, drop_path_rates, resize_table
from .block import build_block
from .crate import ARCHS
from .foreign import Translation
from .official_mae import translate_mae
from .patches import PatchBackbone


def xavier_linears(module: nn.Module) -> None:
    """Initialise every Linear as the official code does: Xavier-uniform weights, biases of zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


@BACKBONES.register_module()
class CRATEMAE(PatchBackbone):
    """CRATE-MAE's encoder: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    Its layers are CRATE's. Before them is a plain patch embedding with fixed positions (``SinCosEmbedding``), behind
    them a LayerNorm, so a head on the tokens needs none of its own (``LinearHead(norm=False)``). Masked patches are
    replaced by a token *before* the first layer, so that all layers run on all N + 1 tokens.

    Images may have any size in whole patches; the positions of another size than ``img_size`` are interpolated.

    Args:
        arch: a name of CRATE's ``ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels that the positions are for, one number if square.
        patch_size: patch height and width in pixels, one number if square.
        in_channels: image channels C.
        ista_step_size: eta.
        ista_lambda: lambda.
        compress: config of ``LAYERS`` for a compression other than ``MSSA``, which gets ``embed_dim`` and
            ``num_heads``; None for none.
        sparsify: config of ``LAYERS`` for a sparsification other than ``ISTA``, which gets ``embed_dim``; None for
            none.
        drop_path, drop_path_rule: stochastic depth of the compression steps, as CRATE's.

    Raises:
        ValueError: unknown ``arch``, sizes that do not divide, or no such ``drop_path``.
    """

    sizes = Sizes("crate_mae", ARCHS)
    positions = "pos_table"
    any_size = True
    head_settings: ClassVar[dict] = {"norm": False}  # the tokens have passed a LayerNorm

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        ista_step_size: float = 0.1,
        ista_lambda: float = 0.5,
        compress: dict | str | None = "default",
        sparsify: dict | str | None = "default",
        drop_path: float = 0.0,
        drop_path_rule: str = "linear",
    ) -> None:
        super().__init__()
        self.arch = resolve_arch(arch, ARCHS)
        self.embed_dim, depth, num_heads = self.arch
        self.embedding = SinCosEmbedding(img_size, patch_size, in_channels, self.embed_dim)
        if compress == "default":
            compress = {"type": "MSSA"}
        if sparsify == "default":
            sparsify = {"type": "ISTA", "step_size": ista_step_size, "lambd": ista_lambda}
        self.blocks = nn.ModuleList(
            build_block(self.embed_dim, num_heads, compress, sparsify, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth, drop_path_rule)
        )
        self.norm = nn.LayerNorm(self.embed_dim, 1e-6)
        xavier_linears(self)

    # A transfer resizes the table as the model does: a table for 224 pixels, in a model for 448, becomes the positions
    # that the checkpoint's model has for an image of 448 pixels.
    resize = staticmethod(resize_table)

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Tokens of images.

        Args:
            images: ``(B, C, H, W)``.
            mask: ``(B, N)``, true for the patches that are hidden from the encoder; none if not given.
            mask_token: ``(1, 1, d)``, what stands for them.
        """
        z, layout = self.embedding(images, mask, mask_token), self.layout(images)
        for block in self.blocks:
            z = block(z, layout)
        return self.norm(z)

    @classmethod
    def translate(cls, weights: dict[str, Tensor], num_heads: int | None = None, **given: Any) -> Translation | None:
        """The official code's weights under our names, with the autoencoder that they are of; None if they are not
        such. See ``translate_mae``."""
        return translate_mae(weights, num_heads, **given)


class MAEDecoder(nn.Module):
    """CRATE-MAE's decoder: the encoder's tokens ``(B, 1 + N, d)`` to the patches' pixels ``(B, N, patch_dim)``.

    It takes the encoder's tokens as they are: there is no projection, no second mask token and no second position
    table, and it is as wide as the encoder.

    Args:
        embed_dim: d, of the encoder.
        depth: number of layers.
        num_heads: K of each layer.
        patch_dim: numbers in a patch, h w C.
    """

    def __init__(self, embed_dim: int, depth: int, num_heads: int, patch_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(embed_dim, MSSA(embed_dim, num_heads)) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, 1e-6)
        self.pred = nn.Linear(embed_dim, patch_dim)
        xavier_linears(self)

    def forward(self, tokens: Tensor, layout: TokenLayout | None = None) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, layout)
        return self.pred(self.norm(tokens))[:, 1:]

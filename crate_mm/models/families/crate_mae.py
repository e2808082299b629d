"""CRATE-MAE, CRATE as a masked autoencoder: encoder backbone, decoder, and the authors' weights.

Source: Pai et al., "Masked Completion via Structured Diffusion with White-Box Transformers", ICLR 2024, arXiv
2404.02446, and the official code, github.com/Ma-Lab-Berkeley/CRATE. ``OFFICIAL`` declares its checkpoints.
Shapes: B images, C channels, H x W pixels, N patches of h x w pixels, d embedding dimensions.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import MSSA, DecoderBlock, SinCosEmbedding, TokenLayout, resize_table, sincos_table, to_pair
from ..official import Argument, Official
from .block import build_blocks
from .crate import ARCHS
from .patches import PatchBackbone

# Official name -> ours. A layer is 'blocks.<l>.layers.0.<0: attention, 1: ISTA>.<norm or fn>', in the decoder
# '<0: dictionary, 1: attention>'. The encoder adds the position table named decoder_pos_embed.
KEY_MAP = (
    (r"cls_token", r"backbone.embedding.cls_token"),
    (r"mask_token", r"mask_token"),
    (r"decoder_pos_embed", r"backbone.embedding.pos_table"),
    (r"patch_embed\.proj\.(weight|bias)", r"backbone.embedding.proj.\1"),
    (r"blocks\.(\d+)\.layers\.0\.0\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_compress.\2"),
    (r"blocks\.(\d+)\.layers\.0\.0\.fn\.qkv\.weight", r"backbone.blocks.\1.compress.proj.weight"),
    (r"blocks\.(\d+)\.layers\.0\.0\.fn\.to_out\.0\.(weight|bias)", r"backbone.blocks.\1.compress.out.\2"),
    (r"blocks\.(\d+)\.layers\.0\.1\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_sparsify.\2"),
    (r"blocks\.(\d+)\.layers\.0\.1\.fn\.weight", r"backbone.blocks.\1.sparsify.dictionary"),
    (r"norm\.(weight|bias)", r"backbone.norm.\1"),
    (r"decoder_blocks\.(\d+)\.layers\.0\.0\.norm\.(weight|bias)", r"decoder.blocks.\1.norm_synthesis.\2"),
    (r"decoder_blocks\.(\d+)\.layers\.0\.0\.fn\.weight", r"decoder.blocks.\1.dictionary"),
    (r"decoder_blocks\.(\d+)\.layers\.0\.1\.norm\.(weight|bias)", r"decoder.blocks.\1.norm_compress.\2"),
    (r"decoder_blocks\.(\d+)\.layers\.0\.1\.fn\.qkv\.weight", r"decoder.blocks.\1.compress.proj.weight"),
    (r"decoder_blocks\.(\d+)\.layers\.0\.1\.fn\.to_out\.0\.(weight|bias)", r"decoder.blocks.\1.compress.out.\2"),
    (r"decoder_norm\.(weight|bias)", r"decoder.norm.\1"),
    (r"decoder_pred\.(weight|bias)", r"decoder.pred.\1"),
)
# The official forward does not use this layer and this second position table.
UNUSED = r"decoder_embed\.(weight|bias)|pos_embed"


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the masked autoencoder with these sizes (see ``Official``)."""
    arch = Sizes("crate_mae", ARCHS).name_of(Arch(s.embed_dim, s.depth, s.num_heads))
    backbone = {"type": "CRATEMAE", "arch": arch, "img_size": s.img_size, "patch_size": s.patch_size}
    backbone |= {name: s.options[name] for name in ("ista_step_size", "ista_lambda") if name in s.options}
    model = {"type": "MaskedAutoencoder", "backbone": backbone}
    model["decoder"] = {"depth": s.decoder_depth, "num_heads": s.decoder_num_heads}
    return model | {name: s.options[name] for name in ("mask_ratio", "norm_pix_loss") if name in s.options}


def position_table(s: SimpleNamespace) -> Tensor:
    """Return the position table of the official code, in float64."""
    H, W = to_pair(s.img_size)
    return sincos_table((H // s.patch_h, W // s.patch_w), s.embed_dim, torch.float64)


OFFICIAL = Official(  # files without the position table
    source="the official CRATE-MAE code",
    signs=("mask_token", "patch_embed.proj.weight", "blocks.0.layers.0.0.fn.qkv.weight"),
    key_map=KEY_MAP,
    shapes={
        "patch_embed.proj.weight": "embed_dim channels patch_h patch_w",
        "blocks.0.layers.0.0.fn.qkv.weight": "embed_dim _",
    },
    counts={"depth": r"blocks\.(\d+)\.", "decoder_depth": r"decoder_blocks\.(\d+)\."},
    arguments={
        "num_heads": Argument(words="{} heads"),
        "decoder_num_heads": Argument("num_heads", "{} heads in the decoder"),
        "ista_step_size": Argument(0.1, "ista_step_size {}"),
        "ista_lambda": Argument(0.5, "ista_lambda {}"),
        "img_size": Argument(words="of {0} x {0} pixels"),
        "mask_ratio": Argument(0.75, "mask_ratio {}"),
        "norm_pix_loss": Argument(False, "norm_pix_loss {}"),
    },
    model=official_model,
    published_by=("embed_dim", "depth", "decoder_depth", "patch_size"),
    published={
        (arch.embed_dim, arch.depth, arch.depth, 16): {"num_heads": arch.num_heads, "img_size": 224}
        for arch in ARCHS.values()
    },
    unlike="no published CRATE-MAE has width {embed_dim}, depths {depth} and {decoder_depth} and patches of "
    "{patch_size} pixels",
    unused=UNUSED,
    computed={"backbone.embedding.pos_table": position_table},
)
WITH_TABLE = replace(
    OFFICIAL,
    signs=(*OFFICIAL.signs, "decoder_pos_embed"),
    shapes={**OFFICIAL.shapes, "decoder_pos_embed": "_ tokens _"},
)


def xavier_linears(module: nn.Module) -> None:
    """Initialize every Linear as in the official code: Xavier-uniform weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


@BACKBONES.register_module()
class CRATEMAE(PatchBackbone):
    """CRATE-MAE's encoder: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    The layers are CRATE's. They follow a convolutional patch embedding with fixed positions (``SinCosEmbedding``) and
    end with a LayerNorm, so a head needs no LayerNorm (``LinearHead(norm=False)``). Masked patches are replaced by a
    token *before* the first layer, so all layers run on all N + 1 tokens.

    Images may have any size that the patch size divides; positions for other sizes than ``img_size`` are interpolated.

    Args:
        arch: a name of CRATE's ``ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width of the position table in pixels, one number if square.
        patch_size, in_channels, ista_step_size, ista_lambda, compress, sparsify, drop_path, drop_path_rule: as in
            ``CRATE``.

    Raises:
        ValueError: unknown ``arch``, indivisible sizes, or invalid ``drop_path``.
    """

    sizes = Sizes("crate_mae", ARCHS)
    official: ClassVar[Official] = replace(OFFICIAL, variants=(WITH_TABLE,))
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
        self.embed_dim = self.arch.embed_dim
        self.embedding = SinCosEmbedding(img_size, patch_size, in_channels, self.embed_dim)
        steps = {"type": "MSSA"}, {"type": "ISTA", "step_size": ista_step_size, "lambd": ista_lambda}
        self.blocks = build_blocks(self.arch, compress, sparsify, steps, drop_path, drop_path_rule)
        self.norm = nn.LayerNorm(self.embed_dim, 1e-6)
        xavier_linears(self)

    # A transfer resizes the table as ``forward`` does: from 224 to 448 pixels it gives the positions that the
    # checkpoint's model uses for images of 448 pixels.
    resize = staticmethod(resize_table)

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        return self.norm(super().forward(images, mask, mask_token))


class MAEDecoder(nn.Module):
    """CRATE-MAE's decoder: the encoder's tokens ``(B, 1 + N, d)`` to the patches' pixels ``(B, N, patch_dim)``.

    It has the width of the encoder, and no projection, mask token or position table of its own.

    Args:
        embed_dim: d of the encoder.
        depth: number of layers.
        num_heads: K of each layer.
        patch_dim: elements of a patch, h w C.
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

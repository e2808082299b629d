"""CRATE, the white-box transformer: each layer compresses (MSSA) and then sparsifies (ISTA) the tokens.

Source: Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023, arXiv 2306.01129, and the official
code, github.com/Ma-Lab-Berkeley/CRATE, whose checkpoints ``CRATE.translate`` reads.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions.
"""

from typing import ClassVar

from torch import Tensor, nn

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import TokenEmbedding, drop_path_rates
from .block import build_block
from .foreign import (
    NORMALISED,
    ForeignError,
    Translation,
    count_layers,
    heads_of,
    image_size,
    ista_given,
    rename,
    shape_of,
    square,
)
from .patches import PatchBackbone

ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=384, depth=12, num_heads=6),
    "small": Arch(embed_dim=576, depth=12, num_heads=12),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "large": Arch(embed_dim=1024, depth=24, num_heads=16),
}
# Those of Yu et al., "Emergence of Segmentation with Minimalistic White-Box Transformers", CPAL 2024, arXiv 2308.16271,
# in patches of 8: its T is "seg_tiny", its S is "tiny" above, its B is "base". Its demo's weights have 6 heads of 128.
SEGMENTATION_ARCHS: dict[str, Arch] = {
    "seg_tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "demo": Arch(embed_dim=768, depth=12, num_heads=6),
}
# (width, depth, patch) -> heads, where one model of these shapes is published. Width 768 in patches of 8 is two.
PUBLISHED_HEADS = {(arch.embed_dim, arch.depth, 16): arch.num_heads for arch in ARCHS.values()}
PUBLISHED_HEADS |= {(192, 12, 8): 3, (384, 12, 8): 6}

# Official name -> ours. A layer is 'transformer.layers.<l>.<0: attention, 1: ISTA>.<norm or fn>'.
KEY_MAP = (
    (r"cls_token", r"backbone.embedding.cls_token"),
    (r"pos_embedding", r"backbone.embedding.pos_embed"),
    (r"to_patch_embedding\.1\.(weight|bias)", r"backbone.embedding.patch_norm.\1"),
    (r"to_patch_embedding\.2\.(weight|bias)", r"backbone.embedding.proj.\1"),
    (r"to_patch_embedding\.3\.(weight|bias)", r"backbone.embedding.norm.\1"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_compress.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.qkv\.weight", r"backbone.blocks.\1.compress.proj.weight"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(weight|bias)", r"backbone.blocks.\1.compress.out.\2"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_sparsify.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.weight", r"backbone.blocks.\1.sparsify.dictionary"),
    (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
    (r"mlp_head\.1\.(weight|bias)", r"head.fc.\1"),
)
# What else such files hold: the second head of the authors' demo weights, to which nothing published leads.
OFFICIAL = "the official CRATE code"
LEFT_OUT = r"head\.(weight|bias)"


@BACKBONES.register_module()
class CRATE(PatchBackbone):
    """CRATE backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    Args:
        arch: a name of ``ARCHS`` or ``SEGMENTATION_ARCHS``, or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square.
        patch_size: patch height and width in pixels, one number if square.
        in_channels: image channels C.
        ista_step_size: eta of Eq. (17).
        ista_lambda: lambda of Eq. (17).
        head_dim: dimension p of each head's subspace; d / K if not given.
        compress: config of ``LAYERS`` for a compression other than ``MSSA``, which gets ``embed_dim`` and
            ``num_heads``; None for none.
        sparsify: config of ``LAYERS`` for a sparsification other than ``ISTA``, which gets ``embed_dim``; None for
            none.
        residual: add the sparsification step to its input, which CRATE does not.
        drop_path: the probability of stochastic depth in the last layer, see ``Block``. Without ``residual`` the
            compression step alone can be dropped.
        drop_path_rule: 'linear', from 0 in the first layer, or 'constant'.

    The paper's Table 3 and the ablation of the segmentation paper are configs: ``compress=dict(type="MSSA",
    tied=True)`` is Eq. (11)'s own output projection; ``compress=dict(type="SoftmaxAttention")`` and, with
    ``residual=True``, ``sparsify=dict(type="MLP")`` are a transformer's parts.

    Raises:
        ValueError: unknown ``arch``, sizes that do not divide, or no such ``drop_path``.
    """

    sizes = Sizes("crate", ARCHS | SEGMENTATION_ARCHS)
    kernels: ClassVar[dict] = {"proj.weight": "d (h w C)", "patch_norm.weight": "(h w C)", "patch_norm.bias": "(h w C)"}
    channels_last = True  # the patches are cut out of images in either order of memory

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        ista_step_size: float = 0.1,
        ista_lambda: float = 0.1,
        head_dim: int | None = None,
        compress: dict | str | None = "default",
        sparsify: dict | str | None = "default",
        residual: bool = False,
        drop_path: float = 0.0,
        drop_path_rule: str = "linear",
    ) -> None:
        super().__init__()
        embed_dim, depth, num_heads = resolve_arch(arch, self.sizes.archs)
        self.embed_dim = embed_dim
        self.embedding = TokenEmbedding(img_size, patch_size, in_channels, embed_dim)
        if compress == "default":
            compress = {"type": "MSSA", "head_dim": head_dim}
        if sparsify == "default":
            sparsify = {"type": "ISTA", "step_size": ista_step_size, "lambd": ista_lambda}
        self.blocks = nn.ModuleList(
            build_block(embed_dim, num_heads, compress, sparsify, residual=residual, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth, drop_path_rule)
        )

    @classmethod
    def translate(
        cls,
        weights: dict[str, Tensor],
        num_heads: int | None = None,
        ista_step_size: float | None = None,
        ista_lambda: float | None = None,
        img_size: int | tuple[int, int] | None = None,
    ) -> Translation | None:
        """The official code's weights under our names, with the model that they are of; None if they are not such.

        Shapes do not tell that images are square and RGB, the pooling, eta and lambda, nor the number of heads. They
        are taken as published unless given; the number of heads only where width, depth and patch are those of one
        published model and there is no further head: the authors' demo weights, in patches of 8, have 6 heads where
        CRATE-Base has 12.

        Args:
            weights: by name, unwrapped.
            num_heads: K, where it is known.
            ista_step_size: eta, where it is not the published one.
            ista_lambda: lambda, likewise.
            img_size: (height, width) of images that are not square.

        Raises:
            ForeignError: the weights are not whole, of no RGB images, or not of what is given.
        """
        if (
            not {"pos_embedding", "to_patch_embedding.2.weight", "transformer.layers.0.0.fn.qkv.weight"}
            <= weights.keys()
        ):
            return None
        _, positions, embed_dim = shape_of(weights, "pos_embedding", 3)
        _, patch_dim = shape_of(weights, "to_patch_embedding.2.weight", 2)
        num_classes, _ = shape_of(weights, "mlp_head.1.weight", 2)
        inner_dim, _ = shape_of(weights, "transformer.layers.0.0.fn.qkv.weight", 2)
        depth = count_layers(weights, r"transformer\.layers\.(\d+)\.")
        if patch_dim % 3:
            raise ForeignError(f"patches of {patch_dim} numbers are not a square image's in RGB")
        patch = square(patch_dim // 3, "the pixels of a patch")
        size = image_size(positions - 1, (patch, patch), img_size)
        renamed, left_out = rename(weights, KEY_MAP, OFFICIAL, LEFT_OUT)
        given, numbers = ista_given(ista_step_size, ista_lambda)
        assumed = f"{'square ' if img_size is None else ''}RGB images {NORMALISED}, CLS pooling{numbers}"
        plain = inner_dim == embed_dim and not left_out
        published = PUBLISHED_HEADS.get((embed_dim, depth, patch)) if plain else None
        unlike = (
            f"no published CRATE has width {embed_dim}, depth {depth}, projection width {inner_dim} and "
            f"patches of {patch} pixels{' with a further head' if left_out else ''}"
        )
        if (embed_dim, depth, patch) == (768, 12, 8):
            unlike = "of width 768, depth 12 and patches of 8 pixels, models with 12 heads and with 6 are published"
        heads, unknown = heads_of(inner_dim, num_heads, published, unlike)
        if heads is None:
            return Translation(OFFICIAL, renamed, None, left_out, assumed, unknown)
        if num_heads is None:
            assumed += f", {heads} heads"
        backbone = {"type": "CRATE", "arch": Sizes("crate", ARCHS).name_of(Arch(embed_dim, depth, heads))}
        backbone |= {"img_size": size, "patch_size": patch, **given}
        if inner_dim != embed_dim:
            backbone["head_dim"] = inner_dim // heads
        head = {"type": "LinearHead", "num_classes": num_classes}
        model = {"type": "ImageClassifier", "backbone": backbone, "head": head}
        return Translation(OFFICIAL, renamed, model, left_out, assumed)

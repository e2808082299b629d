"""CRATE, the white-box transformer: each layer compresses (MSSA) and then sparsifies (ISTA) the tokens.

Source: Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023, arXiv 2306.01129, and the official
code, github.com/Ma-Lab-Berkeley/CRATE. ``OFFICIAL`` declares its checkpoints.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import TokenEmbedding
from ..official import ISTA_ARGUMENTS, NORMALIZED, Argument, Official, classifier
from .block import build_blocks
from .patches import PatchBackbone

ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=384, depth=12, num_heads=6),
    "small": Arch(embed_dim=576, depth=12, num_heads=12),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "large": Arch(embed_dim=1024, depth=24, num_heads=16),
}
# Yu et al., "Emergence of Segmentation with Minimalistic White-Box Transformers", CPAL 2024, arXiv 2308.16271.
# Its patches are 8 x 8; T is "seg_tiny", S is "tiny" above, B is "base". The demo weights have 6 heads of width 128.
SEGMENTATION_ARCHS: dict[str, Arch] = {
    "seg_tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "demo": Arch(embed_dim=768, depth=12, num_heads=6),
}
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


def official_model(s: SimpleNamespace) -> dict:
    """Return the config of the classifier with these sizes (see ``Official``)."""
    backbone = {"type": "CRATE", "arch": Sizes("crate", ARCHS).name_of(Arch(s.embed_dim, s.depth, s.num_heads))}
    backbone |= {"img_size": s.img_size, "patch_size": s.patch_size, **s.options}
    if s.inner_dim != s.embed_dim:
        backbone["head_dim"] = s.inner_dim // s.num_heads
    return classifier(backbone, s.num_classes)


TWO_MODELS = "for width 768, depth 12 and patches of 8 pixels, models with 12 heads and with 6 are published"
OFFICIAL = Official(
    source="the official CRATE code",
    signs=("pos_embedding", "to_patch_embedding.2.weight", "transformer.layers.0.0.fn.qkv.weight"),
    key_map=KEY_MAP,
    shapes={
        "pos_embedding": "_ tokens embed_dim",
        "to_patch_embedding.2.weight": "_ patch_dim",
        "mlp_head.1.weight": "num_classes _",
        "transformer.layers.0.0.fn.qkv.weight": "inner_dim _",
    },
    counts={"depth": r"transformer\.layers\.(\d+)\."},
    arguments={"num_heads": Argument(words="{} heads"), **ISTA_ARGUMENTS, "img_size": Argument()},
    assumes=f"RGB images {NORMALIZED}, CLS pooling",
    model=official_model,
    published_by=("embed_dim", "depth", "inner_dim", "patch_size"),
    published={
        **{(a.embed_dim, a.depth, a.embed_dim, 16): {"num_heads": a.num_heads} for a in ARCHS.values()},
        (192, 12, 192, 8): {"num_heads": 3},
        (384, 12, 384, 8): {"num_heads": 6},
        (768, 12, 768, 8): TWO_MODELS,
    },
    unlike="no published CRATE has width {embed_dim}, depth {depth}, projection width {inner_dim} and patches of "
    "{patch_size} pixels",
)
# The authors' demo weights have a second head of unknown origin.
DEMO = replace(
    OFFICIAL,
    signs=(*OFFICIAL.signs, "head.weight"),
    unused=r"head\.(weight|bias)",
    published={(768, 12, 768, 8): TWO_MODELS},
    unlike=f"{OFFICIAL.unlike} with a further head",
)


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
        head_dim: dimension p of each head's subspace (default: d / K).
        compress: config of ``LAYERS`` to replace ``MSSA``; it gets ``embed_dim`` and ``num_heads``. None for no
            compression.
        sparsify: config of ``LAYERS`` to replace ``ISTA``; it gets ``embed_dim``. None for no sparsification.
        residual: add the output of the sparsification step to its input (not in CRATE).
        drop_path: drop probability of stochastic depth in the last layer, see ``Block``. Without ``residual``, only the
            compression step can be dropped.
        drop_path_rule: 'linear', from 0 in the first layer, or 'constant'.

    Ablations of the paper's Table 3 and of the segmentation paper: ``compress=dict(type="MSSA", tied=True)`` has the
    output projection of Eq. (11); ``compress=dict(type="SoftmaxAttention")`` and, with ``residual=True``,
    ``sparsify=dict(type="MLP")`` are the operators of a transformer.

    Raises:
        ValueError: unknown ``arch``, indivisible sizes, or invalid ``drop_path``.
    """

    sizes = Sizes("crate", ARCHS | SEGMENTATION_ARCHS)
    official: ClassVar[Official] = replace(OFFICIAL, variants=(DEMO,))
    kernels: ClassVar[dict] = {"proj.weight": "d (h w C)", "patch_norm.weight": "(h w C)", "patch_norm.bias": "(h w C)"}
    channels_last = True  # patches can be cut from images in either memory order

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
        size = resolve_arch(arch, self.sizes.archs)
        self.embed_dim = size.embed_dim
        self.embedding = TokenEmbedding(img_size, patch_size, in_channels, size.embed_dim)
        mssa = {"type": "MSSA", "head_dim": head_dim}
        ista = {"type": "ISTA", "step_size": ista_step_size, "lambd": ista_lambda}
        steps = mssa, ista
        self.blocks = build_blocks(size, compress, sparsify, steps, drop_path, drop_path_rule, residual=residual)

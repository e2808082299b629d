"""CBT, the contract-and-broadcast transformer: each layer compresses (CBSA) and then sparsifies (ISTA) the tokens.

Source: Wen, Huang and Li, "Towards Interpretable and Efficient Attention: Compressing All by Contracting a Few",
NeurIPS 2025, arXiv 2509.16875, and the authors' code, github.com/QishuaiWen/CBSA. ``OFFICIAL`` declares its weights for
image classification, including the authors' baselines with MSSA or TSSA in place of CBSA.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import ConvStemWithCLS
from ..official import ISTA_ARGUMENTS, NORMALIZED, Argument, Official, classifier
from .block import build_blocks
from .patches import PatchBackbone

CBT_ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "small": Arch(embed_dim=384, depth=12, num_heads=6),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "large": Arch(embed_dim=1024, depth=24, num_heads=16),
}

KEY_MAP = (
    (r"cls_token", r"backbone.embedding.cls_token"),
    (r"pos_embedding", r"backbone.embedding.pos_embed"),
    (r"to_patch_embedding\.proj\.(\d+)\.([01])\.(\w+)", r"backbone.embedding.stem.\1.\2.\3"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_compress.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.(?:proj|qkv)\.weight", r"backbone.blocks.\1.compress.proj.weight"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.(step_x|step_rep|temp)", r"backbone.blocks.\1.compress.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.(weight|bias)", r"backbone.blocks.\1.compress.out.\2"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_sparsify.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.weight", r"backbone.blocks.\1.sparsify.dictionary"),
    (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
    (r"mlp_head\.1\.(weight|bias)", r"head.fc.\1"),
)


def with_patch_size(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, int]]:
    """Return the weights unchanged, and the patch size, which the number of convolutions determines."""
    patch = 2 ** sum(name.startswith("to_patch_embedding.proj.") and name.endswith(".0.weight") for name in weights)
    return weights, [], {"patch_h": patch, "patch_w": patch}


def official_model(s: SimpleNamespace, **compress: Any) -> dict:
    """Return the config of the classifier with these sizes (see ``Official``)."""
    backbone = {"type": "CBT", "arch": Sizes("cbt", CBT_ARCHS).name_of(Arch(s.embed_dim, s.depth, s.num_heads))}
    backbone |= {"img_size": s.img_size, "patch_size": s.patch_h, **s.options}
    return classifier(backbone | ({"compress": compress} if compress else {}), s.num_classes)


def mssa_model(s: SimpleNamespace) -> dict:
    """As ``official_model``, with MSSA."""
    return official_model(s, type="MSSA")


def tssa_model(s: SimpleNamespace) -> dict:
    """As ``official_model``, with TSSA."""
    return official_model(s, type="TSSA", proj_bias=False)


STEM, OPERATOR = "to_patch_embedding.proj.0.0.weight", "transformer.layers.0.0.fn."
SHAPES = {STEM: "_ channels _ _", "pos_embedding": "_ tokens embed_dim", "mlp_head.1.weight": "num_classes _"}
OFFICIAL = Official(
    source="the CBSA code for image classification",
    signs=(STEM, f"{OPERATOR}step_x"),
    key_map=KEY_MAP,
    shapes={**SHAPES, f"{OPERATOR}step_x": "num_heads _ _"},
    counts={"depth": r"transformer\.layers\.(\d+)\."},
    arguments={"num_heads": Argument(words="{} heads"), **ISTA_ARGUMENTS, "img_size": Argument()},
    assumes=f"RGB images {NORMALIZED}, CLS pooling",
    model=official_model,
    unpack=with_patch_size,
    published_by=("embed_dim", "depth"),
    published={(arch.embed_dim, arch.depth): {"num_heads": arch.num_heads} for arch in CBT_ARCHS.values()},
    unlike="the CBSA code has no model of width {embed_dim} and depth {depth}",
)
IN_ITS_FRAME = (  # the authors' baselines
    replace(
        OFFICIAL,
        signs=(STEM, f"{OPERATOR}temp"),
        shapes={**SHAPES, f"{OPERATOR}temp": "num_heads _"},
        model=tssa_model,
    ),
    replace(OFFICIAL, signs=(STEM, f"{OPERATOR}qkv.weight"), shapes=SHAPES, model=mssa_model),
)


@BACKBONES.register_module()
class CBT(PatchBackbone):
    """CBT backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    CRATE's layer with CBSA in place of MSSA, after ToST's convolutions. The stem has BatchNorm. Its running statistics
    are part of the weights. A training step changes them, and depends on how the batch is split.

    Args:
        arch: a name of ``CBT_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square.
        patch_size: 16 or 8.
        in_channels, ista_step_size, ista_lambda, sparsify, residual, drop_path, drop_path_rule: as in ``CRATE``.
        compress: config of ``LAYERS`` to replace ``CBSA``; it gets ``embed_dim`` and ``num_heads``. None for no
            compression. ``dict(type="CBSA", shifted=False)`` averages only the patches; the published weights need
            the default. ``dict(type="MSSA")`` and ``dict(type="TSSA", proj_bias=False)`` are the authors' baselines.

    Raises:
        ValueError: unknown ``arch``, indivisible sizes, or invalid ``drop_path``.
    """

    sizes = Sizes("cbt", CBT_ARCHS)
    official: ClassVar[Official] = replace(OFFICIAL, variants=IN_ITS_FRAME)
    kernels: ClassVar[dict] = {}

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        ista_step_size: float = 0.1,
        ista_lambda: float = 0.1,
        compress: dict | str | None = "default",
        sparsify: dict | str | None = "default",
        residual: bool = False,
        drop_path: float = 0.0,
        drop_path_rule: str = "linear",
    ) -> None:
        super().__init__()
        size = resolve_arch(arch, CBT_ARCHS)
        self.embed_dim = size.embed_dim
        self.embedding = ConvStemWithCLS(img_size, patch_size, in_channels, size.embed_dim)
        steps = {"type": "CBSA"}, {"type": "ISTA", "step_size": ista_step_size, "lambd": ista_lambda}
        self.blocks = build_blocks(size, compress, sparsify, steps, drop_path, drop_path_rule, residual=residual)

"""CRATE-alpha: CRATE's layer with an overcomplete dictionary, a separate decoder, and a residual connection.

Source: Yang et al., "Scaling White-Box Transformers for Vision", NeurIPS 2024, arXiv 2405.20299, and the authors' code,
github.com/UCSC-VLAA/CRATE-alpha. ``TORCH`` and ``JAX`` declare its PyTorch and JAX weights.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions, K heads of dimension p.
"""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor, nn

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import ConvEmbedding
from ..official import ISTA_ARGUMENTS, NORMALIZED, Argument, Official, classifier
from .block import build_blocks
from .patches import PatchBackbone

ALPHA_ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "small": Arch(embed_dim=576, depth=12, num_heads=12),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "large": Arch(embed_dim=1024, depth=24, num_heads=16),
    "huge": Arch(embed_dim=1280, depth=32, num_heads=16),
}

KEY_MAP = (
    (r"cls_token", r"backbone.embedding.cls_token"),
    (r"pos_embedding", r"backbone.embedding.pos_embed"),
    (r"conv1\.(weight|bias)", r"backbone.embedding.proj.\1"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_compress.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.qkv\.weight", r"backbone.blocks.\1.compress.proj.weight"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.weight", r"backbone.blocks.\1.compress.out.weight"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_sparsify.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.D", r"backbone.blocks.\1.sparsify.dictionary"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.D1", r"backbone.blocks.\1.sparsify.decoder"),
    (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
    (r"mlp_head\.1\.(weight|bias)", r"head.fc.\1"),
)
_LAYER = r"Transformer/encoderblock_(\d+)"
_ATTENTION = rf"{_LAYER}/MultiHeadDotProductSubspaceAttention_0"
JAX_KEY_MAP = (  # ``from_jax`` renames kernels and scales to weights
    (r"cls", r"backbone.embedding.cls_token"),
    (r"pos_embedding", r"backbone.embedding.pos_embed"),
    (r"embedding/(weight|bias)", r"backbone.embedding.proj.\1"),
    (rf"{_LAYER}/LayerNorm_0/(weight|bias)", r"backbone.blocks.\1.norm_compress.\2"),
    (rf"{_ATTENTION}/(proj|out)/weight", r"backbone.blocks.\1.compress.\2.weight"),
    (rf"{_LAYER}/LayerNorm_1/(weight|bias)", r"backbone.blocks.\1.norm_sparsify.\2"),
    (rf"{_LAYER}/OvercompleteISTABlock_0/D", r"backbone.blocks.\1.sparsify.dictionary"),
    (rf"{_LAYER}/OvercompleteISTABlock_0/D1", r"backbone.blocks.\1.sparsify.decoder"),
    (r"encoder_norm/(weight|bias)", r"head.norm.\1"),
    (r"head/(weight|bias)", r"head.fc.\1"),
)


def official_model(s: SimpleNamespace, **head: Any) -> dict:
    """Return the config of the classifier with these sizes (see ``Official``)."""
    arch = Sizes("crate_alpha", ALPHA_ARCHS).name_of(Arch(s.embed_dim, s.depth, s.num_heads))
    backbone = {"type": "CRATEAlpha", "arch": arch, "img_size": s.img_size, "patch_size": s.patch_size, **s.options}
    backbone |= {} if s.atoms == 4 * s.embed_dim else {"ratio": s.atoms // s.embed_dim}
    backbone |= {} if s.decoupled else {"decoupled": False}
    return classifier(backbone, s.num_classes, **head)


def jax_model(s: SimpleNamespace) -> dict:
    """As ``official_model``; the head's LayerNorm has epsilon 1e-6 in the JAX code, 1e-5 in the PyTorch code."""
    return official_model(s, norm_eps=1e-6)


def from_jax(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, int]]:
    """Convert JAX weights to PyTorch's order of dimensions (``Official.unpack``).

    JAX kernels are (in, out), or (h, w, in, out) for a convolution. Attention kernels may have a head dimension:
    (d, K, p) for the input projection, (K, p, d) for the output projection.

    Returns:
        The weights, named without the prefix ``params/``; the names of the file's other content; and ``num_heads`` if
        the shapes determine it.
    """
    has_prefix = any(name.startswith("params/") for name in weights)
    torch_weights, unused, sizes = {}, set(), {}
    for name, value in weights.items():
        if has_prefix and not name.startswith("params/"):
            unused.add(name.partition("/")[0])  # such as the optimizer state
            continue
        plain = name.removeprefix("params/")
        if plain.endswith("/proj/kernel") and value.ndim == 3:
            sizes["num_heads"] = value.shape[1]
            value = value.flatten(1)
        elif plain.endswith("/out/kernel") and value.ndim == 3:
            value = value.flatten(0, 1)
        if plain.endswith("/kernel"):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.mT if value.ndim == 2 else value
        torch_weights[re.sub("/(kernel|scale)$", "/weight", plain)] = value.contiguous()
    return torch_weights, sorted(unused), sizes


TORCH = Official(
    source="the CRATE-alpha code for PyTorch",
    signs=("conv1.weight", "transformer.layers.0.1.fn.D"),
    key_map=KEY_MAP,
    shapes={
        "pos_embedding": "_ tokens _",
        "conv1.weight": "embed_dim channels patch_h patch_w",
        "mlp_head.1.weight": "num_classes _",
        "transformer.layers.0.1.fn.D": "_ atoms",
        "transformer.layers.0.0.fn.qkv.weight": "embed_dim _",
    },
    counts={"depth": r"transformer\.layers\.(\d+)\."},
    flags={"decoupled": "transformer.layers.0.1.fn.D1"},
    arguments={"num_heads": Argument(words="{} heads"), **ISTA_ARGUMENTS, "img_size": Argument()},
    assumes=f"RGB images {NORMALIZED}, CLS pooling",
    model=official_model,
    published_by=("embed_dim", "depth"),
    published={(arch.embed_dim, arch.depth): {"num_heads": arch.num_heads} for arch in ALPHA_ARCHS.values()},
    unlike="no published CRATE-alpha has width {embed_dim} and depth {depth}",
)
_FIRST = "Transformer/encoderblock_0"
JAX = replace(
    TORCH,
    source="the CRATE-alpha code for JAX",
    signs=(f"{_FIRST}/OvercompleteISTABlock_0/D",),
    key_map=JAX_KEY_MAP,
    shapes={
        "pos_embedding": "_ tokens _",
        "embedding/weight": "embed_dim channels patch_h patch_w",
        "head/weight": "num_classes _",
        f"{_FIRST}/OvercompleteISTABlock_0/D": "_ atoms",
        f"{_FIRST}/MultiHeadDotProductSubspaceAttention_0/proj/weight": "embed_dim _",
    },
    counts={"depth": f"{_LAYER}/"},
    flags={"decoupled": f"{_FIRST}/OvercompleteISTABlock_0/D1"},
    model=jax_model,
    unpack=from_jax,
)


@BACKBONES.register_module()
class CRATEAlpha(PatchBackbone):
    """CRATE-alpha backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    The three changes to CRATE's layer are arguments, so the paper's ablation needs configs only. The
    initialization, and epsilon 1e-6 of all LayerNorms, are those of the JAX code, which trained the published models.

    Args:
        arch: a name of ``ALPHA_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size, patch_size, in_channels, ista_step_size, ista_lambda: as in ``CRATE``.
        overcomplete: two ISTA steps with a d x (ratio d) dictionary, decoded to d channels; if false, CRATE's single
            step, whose output is the code.
        decoupled: decode with a separate dictionary.
        residual: add the output of the sparsification step to its input.
        ratio: number of atoms in multiples of d.
        compress: config of ``LAYERS`` to replace the default, ``MSSA`` without output bias; None for no compression.
        sparsify: config of ``LAYERS`` to replace the sparsification; None for no sparsification.
        norm_eps: epsilon of the layers' LayerNorms.
        drop_path, drop_path_rule: stochastic depth, as in CRATE; the published models were trained without it.

    Raises:
        ValueError: unknown ``arch``, indivisible sizes, or ``decoupled`` without ``overcomplete``.
    """

    sizes = Sizes("crate_alpha", ALPHA_ARCHS)
    official: ClassVar[Official] = replace(TORCH, variants=(JAX, replace(JAX, signs=(f"params/{JAX.signs[0]}",))))
    head_settings: ClassVar[dict] = {"norm_eps": 1e-6, "init_std": 0.02}

    def __init__(
        self,
        arch: str | dict = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        ista_step_size: float = 0.1,
        ista_lambda: float = 0.1,
        overcomplete: bool = True,
        decoupled: bool = True,
        residual: bool = True,
        ratio: int = 4,
        compress: dict | str | None = "default",
        sparsify: dict | str | None = "default",
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        drop_path_rule: str = "linear",
    ) -> None:
        super().__init__()
        size = resolve_arch(arch, ALPHA_ARCHS)
        if decoupled and not overcomplete and sparsify == "default":
            raise ValueError("decoupled=True needs overcomplete=True: CRATE's step returns its code and has no decoder")
        self.embed_dim = size.embed_dim
        self.embedding = ConvEmbedding(img_size, patch_size, in_channels, size.embed_dim)
        ista = (
            {"type": "OvercompleteISTA", "ratio": ratio, "decoupled": decoupled} if overcomplete else {"type": "ISTA"}
        )
        steps = {"type": "MSSA", "bias": False}, {**ista, "step_size": ista_step_size, "lambd": ista_lambda}
        options = {"residual": residual, "norm_eps": norm_eps}
        self.blocks = build_blocks(size, compress, sparsify, steps, drop_path, drop_path_rule, **options)
        for block in self.blocks if compress == "default" else ():
            nn.init.normal_(block.compress.proj.weight, std=0.02)
            if isinstance(block.compress.out, nn.Linear):
                nn.init.normal_(block.compress.out.weight, std=0.02)

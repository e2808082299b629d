"""CRATE-alpha: CRATE's layer with an overcomplete dictionary, a way back of its own, and a residual connection.

Source: Yang et al., "Scaling White-Box Transformers for Vision", NeurIPS 2024, arXiv 2405.20299, and the authors' code,
github.com/UCSC-VLAA/CRATE-alpha, whose weights, of PyTorch and of JAX, ``CRATEAlpha.translate`` reads.
Shapes: B images, C channels, H x W pixels, N patches, d embedding dimensions, K heads of dimension p.
"""

from typing import ClassVar

from torch import Tensor, nn

from ...registry import BACKBONES
from ..arch import Arch, Sizes, resolve_arch
from ..layers import ConvEmbedding, drop_path_rates
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
)
from .patches import PatchBackbone

ALPHA_ARCHS: dict[str, Arch] = {
    "tiny": Arch(embed_dim=192, depth=12, num_heads=3),
    "small": Arch(embed_dim=576, depth=12, num_heads=12),
    "base": Arch(embed_dim=768, depth=12, num_heads=12),
    "large": Arch(embed_dim=1024, depth=24, num_heads=16),
    "huge": Arch(embed_dim=1280, depth=32, num_heads=16),
}
HEADS = {(arch.embed_dim, arch.depth): arch.num_heads for arch in ALPHA_ARCHS.values()}

TORCH = "the CRATE-alpha code for PyTorch"
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
JAX = "the CRATE-alpha code for JAX"
JAX_SIGN = "Transformer/encoderblock_0/OvercompleteISTABlock_0/D"
_LAYER = r"Transformer/encoderblock_(\d+)"
_ATTENTION = rf"{_LAYER}/MultiHeadDotProductSubspaceAttention_0"
JAX_KEY_MAP = (  # what ends in 'kernel' or 'scale' there is a weight here
    (r"cls", r"cls_token"),
    (r"pos_embedding", r"pos_embedding"),
    (r"embedding/(weight|bias)", r"conv1.\1"),
    (rf"{_LAYER}/LayerNorm_0/(weight|bias)", r"transformer.layers.\1.0.norm.\2"),
    (rf"{_ATTENTION}/proj/weight", r"transformer.layers.\1.0.fn.qkv.weight"),
    (rf"{_ATTENTION}/out/weight", r"transformer.layers.\1.0.fn.to_out.0.weight"),
    (rf"{_LAYER}/LayerNorm_1/(weight|bias)", r"transformer.layers.\1.1.norm.\2"),
    (rf"{_LAYER}/OvercompleteISTABlock_0/(D1?)", r"transformer.layers.\1.1.fn.\2"),
    (r"encoder_norm/(weight|bias)", r"mlp_head.0.\1"),
    (r"head/(weight|bias)", r"mlp_head.1.\1"),
)


@BACKBONES.register_module()
class CRATEAlpha(PatchBackbone):
    """CRATE-alpha backbone: images ``(B, C, H, W)`` to tokens ``(B, 1 + N, d)``, CLS token first.

    The three changes against CRATE's layer are switches, so that the paper's ablation is a config. Weights start as in
    the JAX code, which has trained the published ones; its LayerNorms have epsilon 1e-6, the head's too.

    Args:
        arch: a name of ``ALPHA_ARCHS`` or a dict with ``embed_dim``, ``depth``, ``num_heads``.
        img_size: image height and width in pixels, one number if square.
        patch_size: patch height and width in pixels, one number if square.
        in_channels: image channels C.
        ista_step_size: eta.
        ista_lambda: lambda.
        overcomplete: two steps of ISTA with a d x (ratio d) dictionary and a way back to d channels; without it,
            CRATE's one step, whose output is the code.
        decoupled: give the way back a dictionary of its own.
        residual: add the sparsification step to its input.
        ratio: atoms of the dictionary in multiples of d.
        compress: config of ``LAYERS`` for a compression other than ``MSSA`` without output bias; None for none.
        sparsify: config of ``LAYERS`` for a sparsification other than that of the switches; None for none.
        norm_eps: of the layers' LayerNorms.
        drop_path, drop_path_rule: stochastic depth, as CRATE's; the published models were trained without.

    Raises:
        ValueError: unknown ``arch``, sizes that do not divide, or ``decoupled`` without ``overcomplete``.
    """

    sizes = Sizes("crate_alpha", ALPHA_ARCHS)
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
        embed_dim, depth, num_heads = resolve_arch(arch, ALPHA_ARCHS)
        if decoupled and not overcomplete and sparsify == "default":
            raise ValueError(
                "decoupled=True needs overcomplete=True: CRATE's step returns its code, and has no way back that could "
                "have a dictionary of its own"
            )
        self.embed_dim = embed_dim
        self.embedding = ConvEmbedding(img_size, patch_size, in_channels, embed_dim)
        step = {"step_size": ista_step_size, "lambd": ista_lambda}
        ista = {"type": "ISTA", **step}
        if overcomplete:
            ista = {"type": "OvercompleteISTA", "ratio": ratio, "decoupled": decoupled, **step}
        self.blocks = nn.ModuleList(
            build_block(
                embed_dim,
                num_heads,
                {"type": "MSSA", "bias": False} if compress == "default" else compress,
                ista if sparsify == "default" else sparsify,
                residual=residual,
                norm_eps=norm_eps,
                drop_path=rate,
            )
            for rate in drop_path_rates(drop_path, depth, drop_path_rule)
        )
        for block in self.blocks if compress == "default" else ():
            nn.init.normal_(block.compress.proj.weight, std=0.02)
            if isinstance(block.compress.out, nn.Linear):
                nn.init.normal_(block.compress.out.weight, std=0.02)

    @classmethod
    def translate(
        cls,
        weights: dict[str, Tensor],
        num_heads: int | None = None,
        ista_step_size: float | None = None,
        ista_lambda: float | None = None,
        img_size: int | tuple[int, int] | None = None,
    ) -> Translation | None:
        """The authors' weights under our names, with the model that they are of; None if they are not such.

        PyTorch's and JAX's code differ in the head's LayerNorm, epsilon 1e-5 and 1e-6: each file gets its code's.
        Shapes do not tell that images are square, eta and lambda, nor, in PyTorch's files, the number of heads, which
        is taken as published for the published widths and depths. The arguments are those of ``CRATE.translate``.

        Raises:
            ForeignError: the weights are not whole, of no RGB images, or not of what is given.
        """
        source, told, norm_eps = TORCH, None, {}
        if any(name.removeprefix("params/") == JAX_SIGN for name in weights):
            source, norm_eps = JAX, {"norm_eps": 1e-6}
            weights, left_out, told = from_jax(weights)
        elif {"conv1.weight", "transformer.layers.0.1.fn.D"} <= weights.keys():
            left_out = []
        else:
            return None
        _, positions, _ = shape_of(weights, "pos_embedding", 3)
        embed_dim, channels, *patch = shape_of(weights, "conv1.weight", 4)
        num_classes, _ = shape_of(weights, "mlp_head.1.weight", 2)
        _, atoms = shape_of(weights, "transformer.layers.0.1.fn.D", 2)
        inner_dim, _ = shape_of(weights, "transformer.layers.0.0.fn.qkv.weight", 2)
        depth = count_layers(weights, r"transformer\.layers\.(\d+)\.")
        if channels != 3 or atoms % embed_dim or inner_dim != embed_dim:
            got = f"{channels} channels, {atoms} atoms and a projection of {inner_dim} for width {embed_dim}"
            raise ForeignError(f"{got} are not those of a CRATE-alpha for RGB images")
        size = image_size(positions - 1, tuple(patch), img_size)
        renamed, _ = rename(weights, KEY_MAP, source)
        given, numbers = ista_given(ista_step_size, ista_lambda)
        assumed = f"{'square ' if img_size is None else ''}RGB images {NORMALISED}, CLS pooling{numbers}"
        if told and num_heads not in (None, told):
            raise ForeignError(f"it has {told} heads, not the {num_heads} that are given as num_heads")
        unlike = f"no published CRATE-alpha has width {embed_dim} and depth {depth}"
        heads, unknown = heads_of(embed_dim, told or num_heads, HEADS.get((embed_dim, depth)), unlike)
        if heads is None:
            return Translation(source, renamed, None, left_out, assumed, unknown)
        if not told and num_heads is None:
            assumed += f", {heads} heads"
        backbone = {"type": "CRATEAlpha", "arch": cls.sizes.name_of(Arch(embed_dim, depth, heads)), "img_size": size}
        backbone |= {"patch_size": patch[0] if patch[0] == patch[1] else tuple(patch), **given}
        backbone |= {} if atoms == 4 * embed_dim else {"ratio": atoms // embed_dim}
        backbone |= {} if "transformer.layers.0.1.fn.D1" in weights else {"decoupled": False}
        head = {"type": "LinearHead", "num_classes": num_classes, **norm_eps}
        model = {"type": "ImageClassifier", "backbone": backbone, "head": head}
        return Translation(source, renamed, model, left_out, assumed)


def from_jax(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], int | None]:
    """JAX's weights as PyTorch's code has them, what else the file holds, and the number of heads if they tell it.

    There a kernel is (in, out), a convolution's (h, w, in, out), and an attention's has its heads apart: (d, K, p) into
    them, (K, p, d) out of them.
    """
    inside = any(name.startswith("params/") for name in weights)
    named, left_out, heads = {}, set(), None
    for name, value in weights.items():
        if inside and not name.startswith("params/"):
            left_out.add(name.partition("/")[0])  # such as the optimizer's state, of which there is much
            continue
        plain = name.removeprefix("params/")
        if plain.endswith("/proj/kernel") and value.ndim == 3:
            heads = value.shape[1]
            value = value.flatten(1)
        elif plain.endswith("/out/kernel") and value.ndim == 3:
            value = value.flatten(0, 1)
        if plain.endswith("/kernel"):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.mT if value.ndim == 2 else value
        for theirs in ("/kernel", "/scale"):
            if plain.endswith(theirs):
                plain = plain.removesuffix(theirs) + "/weight"
        named[plain] = value.contiguous()
    return rename(named, JAX_KEY_MAP, JAX)[0], sorted(left_out), heads

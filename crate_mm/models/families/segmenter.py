"""The authors' segmentation models: Segmenter's ViT with a mask decoder of DEPICT or CBT, in one checkpoint.

Source: github.com/QishuaiWen/DEPICT and github.com/QishuaiWen/CBSA, whose ViT is that of Strudel et al., "Segmenter",
ICCV 2021. ``ViT.official`` has ``SEGMENTERS`` among its variants.
"""

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..decoders.cbt import OFFICIAL as CBT
from ..decoders.depict_ca import OFFICIAL as DEPICT_CA
from ..decoders.depict_sa import OFFICIAL as DEPICT_SA
from ..official import Argument, Official

OURS = r"backbone.encoder.layers.encoder_layer_\1."
TIMM_VIT = (  # timm's names, as patterns
    (r"cls_token", r"backbone.class_token"),
    (r"pos_embed", r"backbone.encoder.pos_embedding"),
    (r"patch_embed\.proj\.(weight|bias)", r"backbone.conv_proj.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", rf"{OURS}ln_\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", rf"{OURS}self_attention.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", rf"{OURS}self_attention.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", rf"{OURS}mlp.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", rf"{OURS}mlp.3.\2"),
    (r"norm\.(weight|bias)", r"backbone.encoder.ln.\1"),
)
VIT_HEADS = {  # ViT-T, S, B and L, by width and depth
    (192, 12): {"num_heads": 3},
    (384, 12): {"num_heads": 6},
    (768, 12): {"num_heads": 12},
    (1024, 24): {"num_heads": 16},
}
PREFIX, SHARED = "decoder.", ("_", "embed_dim", "num_classes")


def segmenter(decoder: Official) -> Official:
    """Return the declaration of a whole model with this decoder; the decoder's sizes get the prefix ``decoder_``."""

    def model(s: SimpleNamespace) -> dict:
        own = {name.removeprefix("decoder_"): value for name, value in vars(s).items() if name.startswith("decoder_")}
        arch = {"embed_dim": s.embed_dim, "depth": s.depth, "num_heads": s.num_heads}
        backbone = {"type": "ViT", "arch": arch, "img_size": s.img_size, "patch_size": s.patch_size, "norm_eps": 1e-5}
        return {
            "type": "Segmentation",
            "backbone": backbone,
            "head": decoder.model(SimpleNamespace(**{**vars(s), **own})),
            "window": s.img_size,
            "preprocessor": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        }

    def unpack(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
        own = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
        sizes = decoder.unpack(own)[2] if decoder.unpack else {}
        return weights, [], {f"decoder_{name}": value for name, value in sizes.items()}

    shapes = {
        f"{PREFIX}{name}": " ".join(size if size in SHARED else f"decoder_{size}" for size in dimensions.split())
        for name, dimensions in decoder.shapes.items()
    }
    return Official(
        source=f"{decoder.source} on Segmenter's ViT",
        signs=("encoder.patch_embed.proj.weight", *(f"{PREFIX}{sign}" for sign in decoder.signs)),
        key_map=(
            *((rf"encoder\.{theirs}", ours) for theirs, ours in TIMM_VIT),
            *((rf"decoder\.{theirs}", f"head.{ours}") for theirs, ours in decoder.key_map),
        ),
        shapes={
            "encoder.patch_embed.proj.weight": "embed_dim channels patch_h patch_w",
            "encoder.pos_embed": "_ tokens embed_dim",
            **shapes,
        },
        counts={
            "depth": r"encoder\.blocks\.(\d+)\.",
            **{f"decoder_{size}": rf"decoder\.{pattern}" for size, pattern in decoder.counts.items()},
        },
        arguments={"num_heads": Argument(words="{} heads"), "img_size": Argument()},
        assumes="RGB images normalized by mean and standard deviation 0.5, evaluated in windows without overlap",
        model=model,
        published_by=("embed_dim", "depth"),
        published=VIT_HEADS,
        unlike="the authors' code has no ViT of width {embed_dim} and depth {depth}",
        unused=r"encoder\.head\.(weight|bias)",  # the classifier of the pretraining
        unpack=unpack,
    )


SEGMENTERS = tuple(map(segmenter, (DEPICT_SA, DEPICT_CA, CBT)))

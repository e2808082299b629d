"""The official code's checkpoints as ours. The names are data; every key and every shape is checked."""

import math
import re

import torch
from torch import Tensor

from .models import ARCHS, ImageClassifier

# Official name -> ours. A layer is 'transformer.layers.<l>.<0: attention, 1: ISTA>.<norm or fn>'.
KEY_MAP = (
    (r"cls_token", r"backbone.embedding.cls_token"),
    (r"pos_embedding", r"backbone.embedding.pos_embed"),
    (r"to_patch_embedding\.1\.(weight|bias)", r"backbone.embedding.patch_norm.\1"),
    (r"to_patch_embedding\.2\.(weight|bias)", r"backbone.embedding.proj.\1"),
    (r"to_patch_embedding\.3\.(weight|bias)", r"backbone.embedding.norm.\1"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_mssa.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.qkv\.weight", r"backbone.blocks.\1.mssa.proj.weight"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(weight|bias)", r"backbone.blocks.\1.mssa.out.\2"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"backbone.blocks.\1.norm_ista.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.weight", r"backbone.blocks.\1.ista.dictionary"),
    (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
    (r"mlp_head\.1\.(weight|bias)", r"head.fc.\1"),
)

# The parameters whose shapes tell the architecture, with their number of dimensions.
_TELLING = {
    "pos_embedding": 3,
    "to_patch_embedding.2.weight": 2,
    "mlp_head.1.weight": 2,
    "transformer.layers.0.0.fn.qkv.weight": 2,
}


def is_official(checkpoint: dict) -> bool:
    """Whether a loaded checkpoint has the official code's names."""
    state_dict = checkpoint.get("state_dict", checkpoint)
    return isinstance(state_dict, dict) and any(
        str(key).removeprefix("module.") == "pos_embedding" for key in state_dict
    )


def rename_official_key(key: str) -> str:
    """Return our name for an official parameter name; raise ``ValueError`` if it is none."""
    bare = key.removeprefix("module.")
    for pattern, ours in KEY_MAP:
        match = re.fullmatch(pattern, bare)
        if match:
            return match.expand(ours)
    raise ValueError(f"{key!r} is not a parameter of the official CRATE code")


def convert_official_state_dict(checkpoint: dict, num_heads: int | None = None) -> dict[str, Tensor]:
    """Return the state dict of our ``ImageClassifier`` from a checkpoint of the official code.

    Args:
        checkpoint: ``{'state_dict': {'module.<name>': tensor}}`` or the bare state dict, with or without 'module.'.
        num_heads: see ``official_model_config``.

    Raises:
        ValueError: a key that is not the official code's, a missing key, or a shape that does not fit the others.
    """
    state_dict = checkpoint.get("state_dict", checkpoint)
    converted = {}
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{key!r} holds {type(value).__name__}, not a tensor: this is no official state dict")
        name = rename_official_key(key)
        if name in converted:
            raise ValueError(f"{key!r} is there twice, with and without 'module.'")
        converted[name] = value

    with torch.device("meta"):
        expected = ImageClassifier(**_without_type(official_model_config(checkpoint, num_heads))).state_dict()
    missing = sorted(expected.keys() - converted.keys())
    surplus = sorted(converted.keys() - expected.keys())
    if missing or surplus:
        raise ValueError(f"the checkpoint is not whole: missing {missing or 'nothing'}, surplus {surplus or 'nothing'}")
    for key, value in converted.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}")
    return converted


def from_official(checkpoint: dict, source: str = "the checkpoint") -> dict:
    """An official checkpoint of a published size as one of ours, ``{meta: {model}, state_dict}``.

    Raises:
        ValueError: as ``convert_official_state_dict``; the message starts with ``source``.
    """
    try:
        model = official_model_config(checkpoint)
        return {"meta": {"model": model}, "state_dict": convert_official_state_dict(checkpoint)}
    except ValueError as error:
        raise ValueError(f"{source}: {error} (tools/convert_official.py --num-heads K takes other sizes)") from None


def official_model_config(checkpoint: dict, num_heads: int | None = None) -> dict:
    """Read the architecture off an official checkpoint's shapes: a config of our ``ImageClassifier``.

    What shapes do not tell is taken to be as published: square RGB images, the number of heads of the size with this
    width and depth, CLS pooling, eta = lambda = 0.1.

    Args:
        checkpoint: as for ``convert_official_state_dict``.
        num_heads: number of heads K, needed where no published size has this width and depth.

    Raises:
        ValueError: a parameter is missing that tells the architecture, or the number of heads is needed.
    """
    state_dict = {k.removeprefix("module."): v for k, v in checkpoint.get("state_dict", checkpoint).items()}
    shapes = {}
    for name, dims in _TELLING.items():
        shape = getattr(state_dict.get(name), "shape", None)
        if shape is None:
            raise ValueError(f"no tensor {name!r} in the checkpoint: it is not one of the official CRATE code")
        if len(shape) != dims:
            raise ValueError(f"{name} has shape {tuple(shape)}, expected one of {dims} dimensions")
        shapes[name] = shape
    (_, num_positions, embed_dim), (_, patch_dim), (num_classes, _), (inner_dim, _) = shapes.values()
    depth = len({match[1] for key in state_dict if (match := re.match(r"transformer\.layers\.(\d+)\.", key))})
    if num_heads is None:
        sizes = {(arch.embed_dim, arch.depth): arch.num_heads for arch in ARCHS.values()}
        num_heads = sizes.get((embed_dim, depth))
        if num_heads is None or inner_dim != embed_dim:
            raise ValueError(
                f"no published CRATE has width {embed_dim}, depth {depth} and projection width {inner_dim}: "
                "give num_heads, which shapes do not tell"
            )
    if num_positions < 2 or patch_dim < 3:
        raise ValueError(f"{num_positions} positions and patches of {patch_dim} numbers are no image's")
    if inner_dim % num_heads:
        raise ValueError(f"num_heads {num_heads} does not divide the projection's width {inner_dim}")
    patch_size, grid = math.isqrt(patch_dim // 3), math.isqrt(num_positions - 1)
    if 3 * patch_size**2 != patch_dim or grid**2 != num_positions - 1:
        raise ValueError(
            f"{num_positions - 1} patches of {patch_dim} numbers are not a square image of square RGB patches"
        )
    arch = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    named = [name for name, size in ARCHS.items() if size._asdict() == arch]
    backbone = {
        "type": "CRATE",
        "arch": named[0] if named else arch,
        "img_size": grid * patch_size,
        "patch_size": patch_size,
    }
    if inner_dim != embed_dim:
        backbone["head_dim"] = inner_dim // num_heads
    return {
        "type": "ImageClassifier",
        "backbone": backbone,
        "head": {"type": "LinearHead", "num_classes": num_classes},
    }


def _without_type(cfg: dict) -> dict:
    return {key: value for key, value in cfg.items() if key != "type"}

"""The official CRATE-MAE code's weights under our names.

A file of theirs is ``{'model': weights, 'optimizer', 'epoch', 'scaler', 'args'}``, as the MAE code base writes it.
"""

import re
from typing import Any

from torch import Tensor

from ..arch import Arch
from ..layers import sincos_table
from .crate import ARCHS
from .foreign import ForeignError, Translation, rename, shape_of, square

OFFICIAL_MAE = "the official CRATE-MAE code"
# Official name -> ours. A layer is 'blocks.<l>.layers.0.<0: attention, 1: ISTA>.<norm or fn>', in the decoder
# '<0: dictionary, 1: attention>'. The table of positions that the encoder adds is the one named decoder_pos_embed.
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
# A layer that the official forward never uses, and a second copy of the table of positions that it never reads.
LEFT_OUT = r"decoder_embed\.(weight|bias)|pos_embed"
TABLES = ("decoder_pos_embed", "pos_embed")
GIVEN = ("decoder_num_heads", "ista_step_size", "ista_lambda", "img_size", "mask_ratio", "norm_pix_loss")


def translate_mae(weights: dict[str, Tensor], num_heads: int | None = None, **given: Any) -> Translation | None:
    """The official code's weights under our names, with the ``MaskedAutoencoder`` that they are of; None if they are
    not such.

    Shapes tell the width, both depths and the patch, the stored table of positions tells the image size. They do not
    tell the rest, which may be given. The number of heads is taken as published where width, depth and patches of 16
    are those of a published model, and else asked for. Everything else that is not given is what the official
    constructor takes, and the result says so. ``decoder_embed``, which the official files hold and no forward pass
    uses, is left out.

    Args:
        weights: by name, unwrapped.
        num_heads: K of the encoder.
        given: ``decoder_num_heads`` (as many as the encoder's, if not given), ``ista_step_size``, ``ista_lambda``,
            ``img_size`` (needed where the weights have no table of positions), ``mask_ratio``, ``norm_pix_loss``.

    Raises:
        ForeignError: the weights are not whole, of no square RGB images, or what is given is not of them.
    """
    if not {"mask_token", "patch_embed.proj.weight", "blocks.0.layers.0.0.fn.qkv.weight"} <= weights.keys():
        return None
    given = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(given.keys() - set(GIVEN))
    if unknown:
        raise ForeignError(f"{OFFICIAL_MAE} has no {unknown[0]}: num_heads, {', '.join(GIVEN)} may be given")
    embed_dim, channels, patch, _ = shape_of(weights, "patch_embed.proj.weight", 4)
    inner_dim, _ = shape_of(weights, "blocks.0.layers.0.0.fn.qkv.weight", 2)
    if channels != 3 or inner_dim != embed_dim:
        raise ForeignError(
            f"its patches have {channels} channels and its projections are {inner_dim} wide, where {OFFICIAL_MAE} has "
            f"3 and the width of the tokens, {embed_dim}"
        )
    depth, decoder_depth = _depth(weights, "blocks"), _depth(weights, "decoder_blocks")
    renamed, left_out = rename(weights, KEY_MAP, OFFICIAL_MAE, LEFT_OUT)
    assumed = ["square RGB images"]
    side = _side(weights, patch, given.get("img_size"))
    published = {(arch.embed_dim, arch.depth, arch.depth): arch.num_heads for arch in ARCHS.values()}
    known_heads = published.get((embed_dim, depth, decoder_depth)) if patch == 16 else None
    heads = num_heads or known_heads
    if side is None and known_heads:
        side = 224 // patch
        assumed.append("of 224 x 224 pixels")
    lacking = [name for name, value in (("num_heads", heads), ("img_size", side)) if value is None]
    if lacking:
        what = f"width {embed_dim}, depths {depth} and {decoder_depth}, patches of {patch} pixels"
        unknown = f"shapes do not tell {' and '.join(lacking)} of a CRATE-MAE of {what}: give {' and '.join(lacking)}"
        return Translation(OFFICIAL_MAE, renamed, None, left_out, "; ".join(assumed), unknown)
    decoder_heads = given.get("decoder_num_heads", heads)
    for count, part in ((heads, "num_heads"), (decoder_heads, "decoder_num_heads")):
        if embed_dim % count:
            raise ForeignError(f"{part} {count} does not divide the width {embed_dim}")
    if not num_heads:
        assumed.append(f"{heads} heads")
    if "decoder_num_heads" not in given:
        assumed.append(f"{decoder_heads} heads in the decoder")
    constructors = {"ista_step_size": 0.1, "ista_lambda": 0.5, "mask_ratio": 0.75, "norm_pix_loss": False}
    assumed += [f"{name} {value}" for name, value in constructors.items() if name not in given]

    renamed.setdefault(
        "backbone.embedding.pos_table", sincos_table((side, side), embed_dim, weights["patch_embed.proj.weight"].dtype)
    )
    arch = Arch(embed_dim, depth, heads)
    named = [name for name, size in ARCHS.items() if size == arch]
    backbone = {"type": "CRATEMAE", "arch": named[0] if named else arch._asdict()}
    backbone |= {"img_size": side * patch, "patch_size": patch}
    backbone |= {name: given[name] for name in ("ista_step_size", "ista_lambda") if name in given}
    model = {"type": "MaskedAutoencoder", "backbone": backbone}
    model["decoder"] = {"depth": decoder_depth, "num_heads": decoder_heads}
    model |= {name: given[name] for name in ("mask_ratio", "norm_pix_loss") if name in given}
    return Translation(OFFICIAL_MAE, renamed, model, left_out, ", ".join(assumed))


def _depth(weights: dict[str, Tensor], part: str) -> int:
    found = {match[1] for name in weights if (match := re.match(rf"{part}\.(\d+)\.", name))}
    if not found:
        raise ForeignError(f"no tensor of {part} is in it: it is not whole")
    return len(found)


def _side(weights: dict[str, Tensor], patch: int, img_size: int | None) -> int | None:
    """Patches on a side of the image, by the table of positions or the image size that is given; None if neither."""
    tables = [name for name in TABLES if name in weights]
    stored = square(shape_of(weights, tables[0], 3)[1] - 1, "the patches") if tables else None
    if img_size is None:
        return stored
    if not isinstance(img_size, int) or img_size < 1 or img_size % patch:
        raise ForeignError(f"img_size {img_size} is not a whole number of patches of {patch}")
    if stored is not None and img_size != stored * patch:
        raise ForeignError(f"img_size {img_size} is given, its table of positions is for {stored * patch}")
    return img_size // patch

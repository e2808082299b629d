"""Translate third-party weights to our parameter names, by the declarations of families and decoders (``official.py``).

Shapes: N patches of h x w pixels.
"""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..registry import MODELS
from .official import Official


class TranslationError(ValueError):
    """The weights are incomplete, or the model arguments do not fit them."""


class Translation(NamedTuple):
    """Translated weights and their model.

    Attributes:
        source: the third-party code.
        weights: state dict with our parameter names.
        model: the model config, or None if shapes do not determine it.
        unused: names in the file that the model does not use.
        assumed: description of what is assumed, such as published values of arguments that shapes do not determine.
        unknown_reason: why ``model`` is None.
        missing: names of the arguments that would determine the model.
    """

    source: str
    weights: dict[str, Tensor]
    model: dict | None
    unused: list[str]
    assumed: str
    unknown_reason: str = ""
    missing: tuple[str, ...] = ()


def translate(
    official: Official,
    weights: dict[str, Tensor],
    /,
    build: Callable[[dict], nn.Module] = MODELS.build,
    **model_args: Any,
) -> Translation | None:
    """Translate weights by a declaration; return None if the declaration is for other weights.

    Args:
        official: the declaration.
        weights: unwrapped state dict.
        build: builds the declaration's ``model``.
        model_args: values of the declaration's ``arguments``. None counts as missing.

    Raises:
        ValueError: the weights are incomplete or match no model of the declaration, or do not match ``model_args``.
    """
    declarations = (*official.variants, official)
    official = next((d for d in declarations if all(sign in weights for sign in d.signs)), None)
    if official is None:
        return None
    model_args = {name: value for name, value in model_args.items() if value is not None}
    unknown = [name for name in model_args if name not in official.arguments]
    if unknown:
        known = ", ".join(official.arguments) or "nothing"
        raise TranslationError(f"weights of {official.source} do not accept {' and '.join(unknown)}, only {known}")
    unused, sizes = [], {}
    if official.unpack:
        weights, unused, sizes = official.unpack(weights)
    sizes = _read_sizes(official, weights) | sizes
    renamed, unused_names = rename(weights, official.key_map, official.source, official.unused)
    arguments, assumed, reason, missing = _resolve_arguments(official, sizes, model_args)
    translation = Translation(official.source, renamed, None, unused + unused_names, assumed, reason, missing)
    if missing:
        return translation
    options = {name: value for name, value in model_args.items() if name not in ("num_heads", "img_size")}
    values = SimpleNamespace(**sizes | arguments, options=options)
    for name in official.computed.keys() - renamed.keys():
        dtype = next((value.dtype for value in renamed.values() if value.is_floating_point()), None)
        renamed[name] = official.computed[name](values).to(dtype)
    model = official.model(values)
    with torch.device("meta"):
        expected = build(model).state_dict()
    missing, unexpected = sorted(expected.keys() - renamed.keys()), sorted(renamed.keys() - expected.keys())
    if missing or unexpected:
        raise TranslationError(
            f"the checkpoint does not fit its model: missing {missing or 'nothing'}, unexpected "
            f"{unexpected or 'nothing'}"
        )
    for key, value in renamed.items():
        if value.shape != expected[key].shape:
            raise TranslationError(f"{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}")
    return translation._replace(model=model)


def rename(
    weights: dict[str, Any], key_map: tuple[tuple[str, str], ...], source: str, unused: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Rename weights by a table of patterns; return the renamed weights and the names that match ``unused``.

    Raises:
        TranslationError: a name matches neither the table nor ``unused``.
    """
    renamed, unused_names = {}, []
    for key, value in weights.items():
        for pattern, ours in key_map:
            match = re.fullmatch(pattern, key)
            if match:
                renamed[match.expand(ours)] = value
                break
        else:
            if not re.fullmatch(unused, key):
                raise TranslationError(f"{key!r} is not a parameter of {source}")
            unused_names.append(key)
    return renamed, unused_names


def _read_sizes(official: Official, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that the weights' names and shapes determine, including ``patch_size``.

    Raises:
        TranslationError: a weight is missing or does not have the declared dimensions.
    """
    sizes: dict[str, Any] = {size: name in weights for size, name in official.flags.items()}
    for name, dimensions in official.shapes.items():
        if name not in weights:
            raise TranslationError(f"incomplete checkpoint: the architecture depends on {name!r}, which is missing")
        shape, dimensions = tuple(weights[name].shape), dimensions.split()
        if len(shape) != len(dimensions):
            raise TranslationError(f"{name} has shape {shape}, expected {len(dimensions)} dimensions")
        for dimension, length in zip(dimensions, shape):
            if dimension != "_" and not length:
                raise TranslationError(f"{name} has shape {shape}, which is empty")
            if dimension != "_" and sizes.setdefault(dimension, length) != length:
                raise TranslationError(f"{name} has shape {shape}, expected {dimension} {sizes[dimension]}")
    for size, pattern in official.counts.items():
        sizes[size] = len({match[1] for name in weights if (match := re.match(pattern, name))})
        if not sizes[size]:
            part = pattern.partition("\\")[0]
            raise TranslationError(f"incomplete checkpoint: it has no tensor of {part}")
    if sizes.get("channels", 3) != 3:
        raise TranslationError(f"its patches have {sizes['channels']} channels, {official.source} uses 3")
    if "patch_dim" in sizes:
        if sizes["patch_dim"] % 3:
            raise TranslationError(f"patches of {sizes['patch_dim']} elements are not square RGB patches")
        sizes["patch_h"] = sizes["patch_w"] = _square_side(sizes["patch_dim"] // 3, "the pixels of a patch")
    if "patch_h" in sizes:
        sizes["patch_size"] = _plain_size(sizes["patch_h"], sizes["patch_w"])
    return sizes


def _resolve_arguments(
    official: Official, sizes: dict[str, Any], model_args: dict[str, Any]
) -> tuple[dict[str, Any], str, str, tuple[str, ...]]:
    """Return all arguments, a description of the assumed values, the reason for missing values, and the missing names.

    The sources, in order: the shapes, ``model_args``, the published model of these sizes, the default.
    """
    published = official.published.get(tuple(sizes[size] for size in official.published_by), {})
    reason = published if isinstance(published, str) else official.unlike.format(**sizes)
    arguments, missing, words = {}, [], []
    square = "square " if "img_size" in official.arguments and "img_size" not in model_args else ""
    for name, (default, phrase) in official.arguments.items():
        value, is_given = model_args.get(name), True
        if name == "img_size" and "tokens" in sizes:
            value = _image_size(sizes, value)
        elif name in sizes:
            if value not in (None, sizes[name]):
                has = phrase.format(sizes[name]) or f"{name} {sizes[name]}"
                raise TranslationError(f"it has {has}, but {name} is {value}")
            value = sizes[name]
        elif value is None:
            is_given = False
            value = published.get(name, default) if isinstance(published, dict) else default
            value = arguments[value] if isinstance(value, str) else value
        elif name == "img_size":
            value = _plain_size(*_checked_size(value))
        elif isinstance(default, bool) and not isinstance(value, bool):
            raise TranslationError(f"{name} must be True or False, got {value!r}")
        if value is None:
            missing += [] if isinstance(default, str) else [name]
        else:
            _check_heads(name, value, sizes)
            assumed = [] if is_given else [phrase.format(value)]
            words = (
                assumed + words if name == "img_size" else words + assumed
            )  # the size comes first, directly after "RGB images" of ``assumes``
        arguments[name] = value
    unknown_reason = f"{reason}: give {' and '.join(missing)}, which shapes do not determine" if missing else ""
    return arguments, ", ".join([square + official.assumes, *words]), unknown_reason, tuple(missing)


def _check_heads(name: str, value: Any, sizes: dict[str, Any]) -> None:
    """Raise ``TranslationError`` if a number of heads does not divide the width."""
    width = sizes.get("inner_dim", sizes.get("embed_dim"))
    if width is None or not name.endswith("num_heads"):
        return
    if not isinstance(value, int) or value < 1 or width % value:
        whose = "projection's width" if "inner_dim" in sizes else "width"
        raise TranslationError(f"{name} {value} does not divide the {whose} {width}")


def _image_size(sizes: dict[str, Any], img_size: int | tuple[int, int] | None) -> int | tuple[int, int]:
    """Return the image size of 1 + N positions: ``img_size``, or by default a square.

    Raises:
        TranslationError: N patches do not form a square and ``img_size`` is None, or ``img_size`` has another number of
            patches.
    """
    patches, h, w = sizes["tokens"] - 1, sizes["patch_h"], sizes["patch_w"]
    side = round(max(patches, 0) ** 0.5)
    if img_size is None:
        try:
            side = _square_side(patches, "the patches")
        except TranslationError as error:
            raise TranslationError(f"{error}: give img_size=(height, width)") from None
        return _plain_size(side * h, side * w)
    H, W = _checked_size(img_size)
    if H % h or W % w:
        raise TranslationError(f"img_size {img_size} is not a whole number of patches of {_plain_size(h, w)}")
    if (H // h) * (W // w) != patches and side**2 == patches:
        square = _plain_size(side * h, side * w)
        raise TranslationError(f"img_size is {img_size}, but the checkpoint's position embeddings are for {square}")
    if (H // h) * (W // w) != patches:
        raise TranslationError(
            f"images of {H} x {W} (img_size) do not have the {patches} patches of {h} x {w} of the position embeddings"
        )
    return _plain_size(H, W)


def _square_side(count: int, name: str) -> int:
    side = round(max(count, 0) ** 0.5)
    if side < 1 or side**2 != count:
        raise TranslationError(f"{name} ({count}) do not form a square")
    return side


def _plain_size(height: int, width: int) -> int | tuple[int, int]:
    return height if height == width else (height, width)


def _checked_size(img_size: Any) -> tuple[int, int]:
    """Return an image size as (height, width)."""
    pair = [img_size] * 2 if isinstance(img_size, int) else img_size
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise TranslationError(f"img_size must be a number of pixels or (height, width), got {img_size!r}")
    return pair[0], pair[1]

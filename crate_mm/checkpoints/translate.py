"""The weights of other code bases, translated to our names as the families declare them (``models/official.py``).

Shapes: N patches of h x w pixels.
"""

import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.backbone import registered_backbones
from ..models.official import Official
from ..registry import MODELS


class TranslationError(ValueError):
    """The weights are incomplete, or the given arguments are not theirs."""


class Translation(NamedTuple):
    """Weights under our names, and the model that they are of.

    Attributes:
        source: the code base.
        weights: by our names.
        model: the config of the model, or None where shapes do not determine it.
        unused: names in the file that no part of the model takes.
        assumed: what shapes do not determine and is taken as published.
        unknown: why ``model`` is None.
    """

    source: str
    weights: dict[str, Tensor]
    model: dict | None
    unused: list[str]
    assumed: str
    unknown: str = ""


def translate_by_family(weights: dict[str, Tensor], given: dict[str, Any]) -> Translation | None:
    """Translate weights by the first registered family that knows their names; return None if no family does.

    Raises:
        TranslationError: a family knows the names and refuses the weights, and no other family takes them.
    """
    refusal: ValueError | None = None
    for family in registered_backbones().values():
        try:
            translation = family.official and translate(family.official, weights, **given)
        except ValueError as error:  # a model that does not build raises its own
            refusal = refusal or error
            continue
        if translation is not None:
            return translation
    if refusal:
        raise TranslationError(str(refusal))
    return None


def translate(official: Official, weights: dict[str, Tensor], **given: Any) -> Translation | None:
    """Translate weights by a family's declaration; return None if they are not those that it declares.

    Args:
        official: the declaration.
        weights: by name, unwrapped.
        given: values of the declaration's ``arguments``. None counts as not given.

    Raises:
        ValueError: the weights are incomplete or of no model of the family, or ``given`` does not fit them.
    """
    kinds = (*official.variants, official)
    official = next((kind for kind in kinds if all(sign in weights for sign in kind.signs)), None)
    if official is None:
        return None
    given = {name: value for name, value in given.items() if value is not None}
    surplus = [name for name in given if name not in official.arguments]
    if surplus:
        known = ", ".join(official.arguments) or "nothing"
        raise TranslationError(f"weights of {official.source} take no {' and no '.join(surplus)}, only {known}")
    unused, sizes = [], {}
    if official.unpack:
        weights, unused, sizes = official.unpack(weights)
    sizes = _read_sizes(official, weights) | sizes
    renamed, left = rename(weights, official.key_map, official.source, official.unused)
    answers, assumed, unknown = _answer(official, sizes, given)
    translation = Translation(official.source, renamed, None, unused + left, assumed, unknown)
    if unknown:
        return translation
    options = {name: value for name, value in given.items() if name not in ("num_heads", "img_size")}
    values = SimpleNamespace(**sizes | answers, options=options)
    for name in official.computed.keys() - renamed.keys():
        dtype = next((value.dtype for value in renamed.values() if value.is_floating_point()), None)
        renamed[name] = official.computed[name](values).to(dtype)
    model = official.model(values)
    with torch.device("meta"):
        expected = MODELS.build(model).state_dict()
    missing, surplus = sorted(expected.keys() - renamed.keys()), sorted(renamed.keys() - expected.keys())
    if missing or surplus:
        raise TranslationError(
            f"the checkpoint is not whole: missing {missing or 'nothing'}, surplus {surplus or 'nothing'}"
        )
    for key, value in renamed.items():
        if value.shape != expected[key].shape:
            raise TranslationError(f"{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}")
    return translation._replace(model=model)


def rename(
    weights: dict[str, Any], key_map: tuple[tuple[str, str], ...], source: str, unused: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Rename weights by a table of patterns; return them, and the names that match ``unused``.

    Raises:
        TranslationError: a name matches neither the table nor ``unused``.
    """
    renamed, left = {}, []
    for key, value in weights.items():
        for pattern, ours in key_map:
            match = re.fullmatch(pattern, key)
            if match:
                renamed[match.expand(ours)] = value
                break
        else:
            if not re.fullmatch(unused, key):
                raise TranslationError(f"{key!r} is not a parameter of {source}")
            left.append(key)
    return renamed, left


def _read_sizes(official: Official, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that the weights' names and shapes determine, ``patch_size`` among them.

    Raises:
        TranslationError: a weight is missing, or has other dimensions than declared.
    """
    sizes: dict[str, Any] = {size: name in weights for size, name in official.flags.items()}
    for name, dimensions in official.shapes.items():
        if name not in weights:
            raise TranslationError(f"no tensor {name!r} is in it, which tells the architecture: it is not whole")
        shape, dimensions = tuple(weights[name].shape), dimensions.split()
        if len(shape) != len(dimensions):
            raise TranslationError(f"{name} has shape {shape}, expected one of {len(dimensions)} dimensions")
        for dimension, length in zip(dimensions, shape):
            if dimension != "_" and not length:
                raise TranslationError(f"{name} has shape {shape}, which holds nothing")
            if dimension != "_" and sizes.setdefault(dimension, length) != length:
                raise TranslationError(f"{name} has shape {shape}, expected {dimension} {sizes[dimension]}")
    for size, pattern in official.counts.items():
        sizes[size] = len({match[1] for name in weights if (match := re.match(pattern, name))})
        if not sizes[size]:
            part = pattern.partition("\\")[0]
            raise TranslationError(f"no tensor of {part} is in it: it is not whole")
    if sizes.get("channels", 3) != 3:
        raise TranslationError(f"its patches have {sizes['channels']} channels, where {official.source} has 3")
    if "patch_dim" in sizes:
        if sizes["patch_dim"] % 3:
            raise TranslationError(f"patches of {sizes['patch_dim']} numbers are not a square image's in RGB")
        sizes["patch_h"] = sizes["patch_w"] = _square_side(sizes["patch_dim"] // 3, "the pixels of a patch")
    if "patch_h" in sizes:
        sizes["patch_size"] = _plain_size(sizes["patch_h"], sizes["patch_w"])
    return sizes


def _answer(official: Official, sizes: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """Return the values of all arguments, the assumptions in words, and why some have no value.

    A value is read off the shapes, given, that of the published model with these sizes, or the default, in this order.
    """
    published = official.published.get(tuple(sizes[size] for size in official.published_by), {})
    reason = published if isinstance(published, str) else official.unlike.format(**sizes)
    answers, missing, words = {}, [], []
    square = "square " if "img_size" in official.arguments and "img_size" not in given else ""
    for name, (default, phrase) in official.arguments.items():
        value, stated = given.get(name), True
        if name == "img_size" and "tokens" in sizes:
            value = _image_size(sizes, value)
        elif name in sizes:
            if value not in (None, sizes[name]):
                has = phrase.format(sizes[name]) or f"{name} {sizes[name]}"
                raise TranslationError(f"it has {has}, not the {value} that are given as {name}")
            value = sizes[name]
        elif value is None:
            stated = False
            value = published.get(name, default) if isinstance(published, dict) else default
            value = answers[value] if isinstance(value, str) else value
        elif name == "img_size":
            value = _plain_size(*_checked_size(value))
        elif isinstance(default, bool) and not isinstance(value, bool):
            raise TranslationError(f"{name} is True or False, not {value!r}")
        if value is None:
            missing += [] if isinstance(default, str) else [name]
        else:
            _check_heads(name, value, sizes)
            assumed = [] if stated else [phrase.format(value)]
            words = assumed + words if name == "img_size" else words + assumed  # the size is said beside "RGB images"
        answers[name] = value
    unknown = f"{reason}: give {' and '.join(missing)}, which shapes do not tell" if missing else ""
    return answers, ", ".join([square + official.assumes, *words]), unknown


def _check_heads(name: str, value: Any, sizes: dict[str, Any]) -> None:
    """Raise ``TranslationError`` if an argument is a number of heads that does not divide the width."""
    width = sizes.get("inner_dim", sizes.get("embed_dim"))
    if width is None or not name.endswith("num_heads"):
        return
    if not isinstance(value, int) or value < 1 or width % value:
        whose = "projection's width" if "inner_dim" in sizes else "width"
        raise TranslationError(f"{name} {value} does not divide the {whose} {width}")


def _image_size(sizes: dict[str, Any], given: int | tuple[int, int] | None) -> int | tuple[int, int]:
    """Return the image size for which there are 1 + N positions: that of a square image, or the given size.

    Raises:
        TranslationError: the patches are not a square's and no size is given, or the given size has another number of
            patches.
    """
    patches, h, w = sizes["tokens"] - 1, sizes["patch_h"], sizes["patch_w"]
    side = round(max(patches, 0) ** 0.5)
    if given is None:
        try:
            side = _square_side(patches, "the patches")
        except TranslationError as error:
            raise TranslationError(f"{error}: give img_size=(height, width), which shapes do not tell") from None
        return _plain_size(side * h, side * w)
    H, W = _checked_size(given)
    if H % h or W % w:
        raise TranslationError(f"img_size {given} is not a whole number of patches of {_plain_size(h, w)}")
    if (H // h) * (W // w) != patches and side**2 == patches:
        square = _plain_size(side * h, side * w)
        raise TranslationError(f"img_size {given} is given, its table of positions is for {square}")
    if (H // h) * (W // w) != patches:
        raise TranslationError(
            f"images of {H} x {W} (img_size) are not {patches} patches of {h} x {w}, for which the position "
            "embeddings are"
        )
    return _plain_size(H, W)


def _square_side(count: int, what: str) -> int:
    side = round(max(count, 0) ** 0.5)
    if side < 1 or side**2 != count:
        raise TranslationError(f"{what} ({count}) are not a square image's")
    return side


def _plain_size(height: int, width: int) -> int | tuple[int, int]:
    return height if height == width else (height, width)


def _checked_size(img_size: Any) -> tuple[int, int]:
    """Return a given image size as (height, width)."""
    pair = [img_size] * 2 if isinstance(img_size, int) else img_size
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise TranslationError(f"img_size is a number of pixels or (height, width), not {img_size!r}")
    return pair[0], pair[1]

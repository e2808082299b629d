"""What a family says of weights that are under another code base's names."""

import re
from typing import NamedTuple

from torch import Tensor

NORMALISED = "normalised by ImageNet's mean and standard deviation"  # as ImagePreprocessor does if not told otherwise


class ForeignError(ValueError):
    """Weights of another code base that are not whole."""


class Translation(NamedTuple):
    """Weights under our names, and the model that they are of.

    ``model`` is the config of the classifier, or None where shapes do not tell it, for the reason in ``unknown``.
    ``source`` names the code base, ``left_out`` the entries that no part of ours takes, and ``assumed`` says what the
    shapes do not tell and is taken as published.
    """

    source: str
    weights: dict[str, Tensor]
    model: dict | None
    left_out: list[str]
    assumed: str
    unknown: str = ""


def rename(
    weights: dict[str, Tensor], key_map: tuple[tuple[str, str], ...], source: str, left_out: str = ""
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename weights by a table of patterns; return them, and the names that match ``left_out``.

    Raises:
        ForeignError: a name that neither the table nor ``left_out`` knows.
    """
    renamed, left = {}, []
    for key, value in weights.items():
        for pattern, ours in key_map:
            match = re.fullmatch(pattern, key)
            if match:
                renamed[match.expand(ours)] = value
                break
        else:
            if not re.fullmatch(left_out, key):
                raise ForeignError(f"{key!r} is not a parameter of {source}")
            left.append(key)
    return renamed, left


def shape_of(weights: dict[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """The shape of a parameter that tells the architecture.

    Raises:
        ForeignError: it is missing, or has another number of dimensions.
    """
    if name not in weights:
        raise ForeignError(f"no tensor {name!r} is in it, which tells the architecture: it is not whole")
    shape = tuple(weights[name].shape)
    if len(shape) != dims:
        raise ForeignError(f"{name} has shape {shape}, expected one of {dims} dimensions")
    return shape


def square(numbers: int, what: str) -> int:
    """The side of a square of so many; raise ``ForeignError`` if it is none."""
    side = round(max(numbers, 0) ** 0.5)
    if side < 1 or side**2 != numbers:
        raise ForeignError(f"{what} ({numbers}) are not a square image's")
    return side


def count_layers(weights: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers the group of a pattern finds at the beginning of the names."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def image_size(
    positions: int, patch: tuple[int, int], img_size: int | tuple[int, int] | None = None
) -> int | tuple[int, int]:
    """The size of the images whose patches have so many positions: a square's side, or what is given.

    Raises:
        ForeignError: the patches are not a square's and no size is given, or one that has another number of them.
    """
    if img_size is None:
        try:
            grid = square(positions, "the patches")
        except ForeignError as error:
            raise ForeignError(f"{error}: give img_size=(height, width), which shapes do not tell") from None
        return grid * patch[0] if patch[0] == patch[1] else (grid * patch[0], grid * patch[1])
    H, W = checked_size(img_size)
    if H % patch[0] or W % patch[1] or (H // patch[0]) * (W // patch[1]) != positions:
        raise ForeignError(
            f"images of {H} x {W} (img_size) are not {positions} patches of {patch[0]} x {patch[1]}, for which the "
            "position embeddings are"
        )
    return H if H == W else (H, W)


def checked_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """A given size of images as (height, width); raise ``ForeignError`` unless it is one number or two."""
    pair = [img_size] * 2 if isinstance(img_size, int) else img_size
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ForeignError(f"img_size is a number of pixels or (height, width), not {img_size!r}")
    return pair[0], pair[1]


def heads_of(width: int, given: int | None, published: int | None, unknown: str) -> tuple[int | None, str]:
    """The number of heads, given or published, and the reason in a sentence where neither says it.

    Args:
        width: of the projection, which the heads share.
        given: by the user.
        published: of the model of these shapes, where there is one such.
        unknown: what no published model is like.

    Raises:
        ForeignError: the number does not divide the width.
    """
    num_heads = published if given is None else given
    if num_heads is None:
        return None, f"{unknown}: give num_heads, which shapes do not tell"
    if not isinstance(num_heads, int) or num_heads < 1 or width % num_heads:
        raise ForeignError(f"num_heads {num_heads} does not divide the projection's width {width}")
    return num_heads, ""


def ista_given(step_size: float | None, lambd: float | None) -> tuple[dict[str, float], str]:
    """What is given of eta and lambda, as arguments of a backbone, and in words what is taken as published, 0.1."""
    given = {"ista_step_size": step_size, "ista_lambda": lambd}
    given = {key: value for key, value in given.items() if value is not None}
    published = [word for key, word in (("ista_step_size", "eta"), ("ista_lambda", "lambda")) if key not in given]
    return given, f", {' = '.join(published)} = 0.1" if published else ""

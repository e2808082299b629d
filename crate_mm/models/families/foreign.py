"""What a family says of weights that are under another code base's names."""

import re
from typing import NamedTuple

from torch import Tensor


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

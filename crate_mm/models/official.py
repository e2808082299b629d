"""The declaration of weights under another code base's names, which a family carries as ``official``.

It is data: ``checkpoints/official.py`` reads a file by it. Shapes: N patches of h x w pixels, d embedding dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

NORMALIZED = "normalized by ImageNet's mean and standard deviation"  # as ImagePreprocessor does by default


class Argument(NamedTuple):
    """An argument of a model that shapes do not determine.

    Args:
        default: the published value; the name of another argument, whose value is taken; or None where a published
            model or the user must answer.
        words: how the notes state an assumed value, with {} in its place.
    """

    default: Any = None
    words: str = ""


# eta and lambda of ISTA, as the authors of CRATE and CRATE-alpha published them.
ISTA_ARGUMENTS = {"ista_step_size": Argument(0.1, "eta = {}"), "ista_lambda": Argument(0.1, "lambda = {}")}


@dataclass(frozen=True, kw_only=True)
class Official:
    """Weights of one other code base.

    The values of ``shapes``, ``counts`` and ``flags`` are called sizes here. Some names of sizes have a meaning:
    ``tokens`` is 1 + N and determines ``img_size``; ``channels`` must be 3; ``patch_dim``, which is 3 h w of a square
    patch, or ``patch_h`` and ``patch_w`` determine ``patch_size``; heads must divide ``inner_dim``, or ``embed_dim``
    where there is none. A size that is also in ``arguments`` answers it.

    Args:
        source: the code base, for messages.
        signs: names of weights; a file that has all of them is of this code base.
        key_map: pairs of a pattern that matches a whole name, and our name with ``\\1`` for its first group.
        shapes: name of a weight -> the names of its dimensions, such as ``"_ tokens embed_dim"``, with _ for one that
            determines nothing. Dimensions of one name must be equal.
        counts: size -> pattern that names begin with; the size is the number of different first groups, at least 1.
        flags: size -> name of a weight; the size is whether the file has it.
        arguments: what only the user can say; in the order in which messages list it.
        assumes: what is taken for granted, for the notes.
        model: the config of the model, from a namespace of all sizes and arguments. Its ``options`` are the arguments
            that the user gave, without ``num_heads`` and ``img_size``.
        published_by: the sizes that identify a published model.
        published: their values -> the arguments of the published model; a text where several are published.
        unlike: the message where no model of these sizes is published, a template of sizes.
        unused: pattern of names that no part of the model takes.
        computed: our names of weights that a file may lack, as the code computes them.
        unpack: brings the file's weights to the names and shapes of ``key_map`` and ``shapes``; returns them, the
            names of what else the file holds, and sizes that only the file's own shapes determine.
        variants: other kinds of files with weights of this family; the first whose signs match is taken.
    """

    source: str
    signs: tuple[str, ...]
    key_map: tuple[tuple[str, str], ...]
    shapes: dict[str, str]
    model: Callable[[SimpleNamespace], dict]
    counts: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Argument] = field(default_factory=dict)
    assumes: str = "RGB images"
    published_by: tuple[str, ...] = ()
    published: dict[tuple, dict[str, Any] | str] = field(default_factory=dict)
    unlike: str = "no model of these shapes is known"
    unused: str = ""
    computed: dict[str, Callable[[SimpleNamespace], Tensor]] = field(default_factory=dict)
    unpack: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[str], dict[str, Any]]] | None = None
    variants: tuple["Official", ...] = ()


def classifier(backbone: dict, num_classes: int, **head: Any) -> dict:
    """Return the config of a classifier with a linear head."""
    return {
        "type": "ImageClassifier",
        "backbone": backbone,
        "head": {"type": "LinearHead", "num_classes": num_classes, **head},
    }

"""Declaration of the weights of a third-party code base (``Backbone.official``, ``MaskDecoder.official``).

``translate.py`` interprets the declaration. Shapes: N patches of h x w pixels, d embedding dimensions.
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
        default: the published value; or the name of another argument, whose value is used; or None if a published
            model or the user must provide it.
        words: template of the note on an assumed value, with {} for the value.
    """

    default: Any = None
    words: str = ""


# eta and lambda of ISTA, as the authors of CRATE and CRATE-alpha published them.
ISTA_ARGUMENTS = {"ista_step_size": Argument(0.1, "eta = {}"), "ista_lambda": Argument(0.1, "lambda = {}")}


@dataclass(frozen=True, kw_only=True)
class Official:
    """Weights of one third-party code base.

    The values that ``shapes``, ``counts`` and ``flags`` determine are called sizes. Some size names have a meaning:
    ``tokens`` is 1 + N and determines ``img_size``; ``channels`` must be 3; ``patch_dim`` (3 h w of a square patch), or
    ``patch_h`` and ``patch_w``, determine ``patch_size``; numbers of heads must divide ``inner_dim`` or, without it,
    ``embed_dim``. A size that is also in ``arguments`` sets that argument.

    Args:
        source: the code base, for messages.
        signs: weight names that identify the code base: each of its files has all of them.
        key_map: pairs (pattern of a whole weight name, our name); ``\\1`` in our name is the pattern's first group.
        shapes: weight name -> names of its dimensions, such as ``"_ tokens embed_dim"``; _ determines nothing.
            Dimensions of the same name must be equal.
        counts: size -> pattern of the start of weight names; the size is the number, at least 1, of distinct values of
            the pattern's first group.
        flags: size -> weight name; the size is whether the file has this weight.
        arguments: arguments that shapes do not determine, in the order in which messages name them.
        assumes: assumptions to state in the notes.
        model: function from a namespace of all sizes and arguments to the model config. ``options`` of the namespace
            are the arguments that the user gave, without ``num_heads`` and ``img_size``.
        published_by: sizes that identify a published model.
        published: values of ``published_by`` -> arguments of the published model, or a message if several models fit.
        unlike: message if no model of these sizes is published, a template with sizes as fields.
        unused: pattern of weight names that the model does not use.
        computed: our name of a weight that a file may lack -> function that computes the weight.
        unpack: converts the file's weights to the names and shapes of ``key_map`` and ``shapes``. Returns the new
            weights, the names of the file's other content, and sizes that only the original shapes determine.
        variants: other file formats of this family, tried first, in this order.
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

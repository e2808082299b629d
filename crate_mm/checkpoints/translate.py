"""Translate third-party weights by the registered families."""

from typing import Any

from torch import Tensor

from ..models.backbone import registered_backbones
from ..models.translate import Translation, TranslationError, rename, translate

__all__ = ["Translation", "TranslationError", "rename", "translate", "translate_by_family"]


def translate_by_family(weights: dict[str, Tensor], model_args: dict[str, Any]) -> Translation | None:
    """Translate weights by the first registered family that knows their names; return None if no family does.

    Raises:
        TranslationError: a family knows the names but rejects the weights, and no other family accepts them.
    """
    first_error: ValueError | None = None
    for family in registered_backbones().values():
        try:
            translation = family.official and translate(family.official, weights, **model_args)
        except ValueError as error:  # a model that does not build raises a plain ValueError
            first_error = first_error or error
            continue
        if translation is not None:
            return translation
    if first_error:
        raise TranslationError(str(first_error))
    return None

"""Mask decoders: patches to the masks of classes."""

from .base import MaskDecoder
from .cbt import CBTDecoder
from .depict_ca import DEPICTCA
from .depict_sa import DEPICTSA

__all__ = ["DEPICTCA", "DEPICTSA", "CBTDecoder", "MaskDecoder"]

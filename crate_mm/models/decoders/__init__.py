"""Mask decoders: from patches to one mask per class."""

from .base import MaskDecoder
from .cbt import CBTDecoder
from .depict_ca import DEPICTCA
from .depict_sa import DEPICTSA

__all__ = ["DEPICTCA", "DEPICTSA", "CBTDecoder", "MaskDecoder"]

from .arch import Arch
from .crate import ARCHS, CRATE
from .vit import VIT_ARCHS, ViT

__all__ = ["ARCHS", "CRATE", "VIT_ARCHS", "Arch", "ViT"]

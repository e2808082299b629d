from .arch import Arch
from .crate import ARCHS, CRATE
from .vit import VIT_ARCHS, ViT

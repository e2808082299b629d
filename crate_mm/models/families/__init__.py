from .arch import Arch
from .crate import ARCHS, CRATE
from .crate_mae import CRATEMAE, MAEDecoder
from .vit import VIT_ARCHS, ViT

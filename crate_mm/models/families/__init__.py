"""Backbones: CRATE and its relatives."""

from .alpha import ALPHA_ARCHS, CRATEAlpha
from .aot import AOT_ARCHS, AoT
from .causal_crate import CAUSAL_CRATE_ARCHS, CausalCRATE
from .cbt import CBT, CBT_ARCHS
from .crate import ARCHS, CRATE, SEGMENTATION_ARCHS
from .crate_mae import CRATEMAE, MAEDecoder
from .tost import TOST_ARCHS, ToST
from .vit import VIT_ARCHS, ViT

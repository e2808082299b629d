"""Backbones: CRATE and its relatives."""

from .alpha import ALPHA_ARCHS, CRATEAlpha
from .aot import AOT_ARCHS, AoT
from .causal_aot import CausalAoT
from .causal_crate import CAUSAL_CRATE_ARCHS, CausalCRATE
from .causal_tost import CAUSAL_TOST_ARCHS, CausalToST
from .cbt import CBT, CBT_ARCHS
from .crate import ARCHS, CRATE, SEGMENTATION_ARCHS
from .crate_mae import CRATEMAE, MAEDecoder
from .gpt2 import GPT2, GPT2_ARCHS
from .tost import TOST_ARCHS, ToST
from .vit import VIT_ARCHS, ViT

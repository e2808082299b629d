"""Models: layers, backbones and tasks."""

from .backbone import Backbone, InputSpec, PatchKernel, Positions
from .families import (
    ALPHA_ARCHS,
    AOT_ARCHS,
    ARCHS,
    CAUSAL_CRATE_ARCHS,
    CAUSAL_TOST_ARCHS,
    CBT,
    CBT_ARCHS,
    CRATE,
    CRATEMAE,
    GPT2,
    GPT2_ARCHS,
    SEGMENTATION_ARCHS,
    TOST_ARCHS,
    VIT_ARCHS,
    AoT,
    CausalAoT,
    CausalCRATE,
    CausalToST,
    CRATEAlpha,
    ToST,
    ViT,
)
from .layers import Layer, TokenLayout
from .tasks import (
    ImageClassifier,
    ImagePreprocessor,
    LanguageModel,
    LinearHead,
    MaskedAutoencoder,
    SelfDistillation,
    Task,
)

__all__ = [
    "ALPHA_ARCHS", "AOT_ARCHS", "ARCHS", "CAUSAL_CRATE_ARCHS", "CAUSAL_TOST_ARCHS", "CBT", "CBT_ARCHS", "CRATE",
    "CRATEMAE", "GPT2", "GPT2_ARCHS", "SEGMENTATION_ARCHS", "TOST_ARCHS", "VIT_ARCHS", "AoT", "Backbone", "CRATEAlpha",
    "CausalAoT", "CausalCRATE", "CausalToST", "ImageClassifier", "ImagePreprocessor", "InputSpec", "LanguageModel",
    "Layer", "LinearHead", "MaskedAutoencoder", "PatchKernel", "Positions", "SelfDistillation", "Task", "ToST",
    "TokenLayout", "ViT",
]  # fmt: skip

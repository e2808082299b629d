"""Models: layers, backbones and tasks."""

from .backbone import Backbone, InputSpec, PatchKernel, Positions
from .decoders import DEPICTCA, DEPICTSA, CBTDecoder, MaskDecoder
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
    LinearDecoder,
    LinearHead,
    MaskedAutoencoder,
    Segmentation,
    SelfDistillation,
    Task,
)

__all__ = [
    "ALPHA_ARCHS", "AOT_ARCHS", "ARCHS", "CAUSAL_CRATE_ARCHS", "CAUSAL_TOST_ARCHS", "CBT", "CBT_ARCHS", "CRATE",
    "CRATEMAE", "DEPICTCA", "DEPICTSA", "GPT2", "GPT2_ARCHS", "SEGMENTATION_ARCHS", "TOST_ARCHS", "VIT_ARCHS", "AoT",
    "Backbone", "CBTDecoder", "CRATEAlpha", "CausalAoT", "CausalCRATE", "CausalToST", "ImageClassifier",
    "ImagePreprocessor", "InputSpec", "LanguageModel", "Layer", "LinearDecoder", "LinearHead", "MaskDecoder",
    "MaskedAutoencoder", "PatchKernel", "Positions", "Segmentation", "SelfDistillation", "Task", "ToST", "TokenLayout",
    "ViT",
]  # fmt: skip

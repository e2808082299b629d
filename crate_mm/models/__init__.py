"""Models: layers, backbones and tasks."""

from .backbone import Backbone, InputSpec, PatchKernel, Positions
from .decoders import DEPICTCA, DEPICTSA, CBTDecoder, MaskDecoder
from .families import (
    ALPHA_ARCHS,
    AOT_ARCHS,
    ARCHS,
    CBT,
    CBT_ARCHS,
    CRATE,
    CRATEMAE,
    SEGMENTATION_ARCHS,
    TOST_ARCHS,
    VIT_ARCHS,
    AoT,
    CRATEAlpha,
    ToST,
    ViT,
)
from .layers import Layer, TokenLayout
from .tasks import (
    ImageClassifier,
    ImagePreprocessor,
    LinearDecoder,
    LinearHead,
    MaskedAutoencoder,
    Segmentation,
    SelfDistillation,
    Task,
)

__all__ = [
    "ALPHA_ARCHS", "AOT_ARCHS", "ARCHS", "CBT", "CBT_ARCHS", "CRATE", "CRATEMAE", "DEPICTCA", "DEPICTSA",
    "SEGMENTATION_ARCHS", "TOST_ARCHS", "VIT_ARCHS", "AoT", "Backbone", "CBTDecoder", "CRATEAlpha", "ImageClassifier",
    "ImagePreprocessor", "InputSpec", "Layer", "LinearDecoder", "LinearHead", "MaskDecoder", "MaskedAutoencoder",
    "PatchKernel", "Positions", "Segmentation", "SelfDistillation", "Task", "ToST", "TokenLayout", "ViT",
]  # fmt: skip

from .families import (
    ALPHA_ARCHS,
    ARCHS,
    CRATE,
    CRATEMAE,
    SEGMENTATION_ARCHS,
    TOST_ARCHS,
    VIT_ARCHS,
    CRATEAlpha,
    ToST,
    ViT,
)
from .tasks import ImageClassifier, ImagePreprocessor, LinearHead, MaskedAutoencoder, Task

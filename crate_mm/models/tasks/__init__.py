"""Tasks: backbones with a head, a loss and a prediction."""

from .base import Task
from .classifier import ImageClassifier
from .distillation import SelfDistillation
from .heads import LinearDecoder, LinearHead
from .language import LanguageModel
from .masked import MaskedAutoencoder
from .preprocessor import ImagePreprocessor
from .segmentation import Segmentation

from .backbones import ARCHS, CRATE
from .classifier import ImageClassifier
from .heads import LinearHead
from .preprocessor import ImagePreprocessor

__all__ = ["ARCHS", "CRATE", "ImageClassifier", "ImagePreprocessor", "LinearHead"]

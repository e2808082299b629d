from .backbones import ARCHS, CRATE, VIT_ARCHS, ViT
from .classifier import ImageClassifier
from .heads import LinearHead
from .preprocessor import ImagePreprocessor

__all__ = ["ARCHS", "CRATE", "VIT_ARCHS", "ImageClassifier", "ImagePreprocessor", "LinearHead", "ViT"]

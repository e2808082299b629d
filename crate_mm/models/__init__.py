from .families import ARCHS, CRATE, VIT_ARCHS, ViT
from .tasks import ImageClassifier, ImagePreprocessor, LinearHead, Task

__all__ = ["ARCHS", "CRATE", "VIT_ARCHS", "ImageClassifier", "ImagePreprocessor", "LinearHead", "Task", "ViT"]

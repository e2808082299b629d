from .base import Task
from .classifier import ImageClassifier
from .heads import LinearHead
from .preprocessor import ImagePreprocessor

__all__ = ["ImageClassifier", "ImagePreprocessor", "LinearHead", "Task"]

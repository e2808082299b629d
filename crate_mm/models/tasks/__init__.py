from .base import Task
from .classifier import ImageClassifier
from .heads import LinearHead
from .preprocessor import ImagePreprocessor

from .families import ARCHS, CRATE, VIT_ARCHS, ViT
from .tasks import ImageClassifier, ImagePreprocessor, LinearHead, Task

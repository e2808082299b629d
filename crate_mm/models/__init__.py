from .families import ARCHS, CRATE, CRATEMAE, VIT_ARCHS, ViT
from .tasks import ImageClassifier, ImagePreprocessor, LinearHead, MaskedAutoencoder, Task

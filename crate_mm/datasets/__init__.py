from .classification import ClassificationDataset, UnreadableImagesError
from .sampler import GlobalBatchSampler
from .sources import Digits, ImageNet, imagenet_class_names
from .transforms import build_transforms

__all__ = [
    "ClassificationDataset",
    "Digits",
    "GlobalBatchSampler",
    "ImageNet",
    "UnreadableImagesError",
    "build_transforms",
    "imagenet_class_names",
]

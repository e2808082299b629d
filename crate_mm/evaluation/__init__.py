"""Metrics of classifiers, of nearest neighbors, of reconstructions, of segmentations and of language models."""

from .knn import KNNMetric, extract_features, knn_predict
from .language import TokenLoss
from .metrics import ClassificationMetric, confusion_matrix, per_class_accuracy
from .real import ImageNetReaL
from .reconstruction import ReconstructionLoss
from .segmentation import SegmentationMetric

__all__ = [
    "ClassificationMetric", "ImageNetReaL", "KNNMetric", "ReconstructionLoss", "SegmentationMetric", "TokenLoss",
    "confusion_matrix",
    "extract_features", "knn_predict", "per_class_accuracy",
]  # fmt: skip

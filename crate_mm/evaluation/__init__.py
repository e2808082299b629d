"""Metrics of classifiers, of nearest neighbors and of reconstructions."""

from .knn import KNNMetric, extract_features, knn_predict
from .metrics import ClassificationMetric, confusion_matrix, per_class_accuracy
from .real import ImageNetReaL
from .reconstruction import ReconstructionLoss

__all__ = [
    "ClassificationMetric", "ImageNetReaL", "KNNMetric", "ReconstructionLoss", "confusion_matrix", "extract_features",
    "knn_predict", "per_class_accuracy",
]  # fmt: skip

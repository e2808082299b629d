"""Metrics of classifiers, of nearest neighbors and of reconstructions."""

from .knn import KNNMetric, extract_features, knn_predict
from .metrics import ClassificationMetric, confusion_matrix, per_class_accuracy
from .real import ImageNetReaL
from .reconstruction import ReconstructionLoss

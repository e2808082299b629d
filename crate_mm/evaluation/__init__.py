from .metrics import ClassificationMetric

__all__ = ["ClassificationMetric"]

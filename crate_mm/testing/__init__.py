"""Checks for custom backbones, layers and tasks, like scikit-learn's ``check_estimator``.

Each check takes a module and raises ``AssertionError`` for the first violation of the contract.
"""

from .backbone import check_backbone
from .layer import check_layer
from .task import check_task

__all__ = ["check_backbone", "check_layer", "check_task"]

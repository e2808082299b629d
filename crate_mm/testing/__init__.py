"""Checks for parts of your own, in the manner of scikit-learn's ``check_estimator``.

Each check builds nothing and trains nothing: it takes a module, tries what the contract promises, and raises
``AssertionError`` with a sentence for the first promise that is not kept.
"""

from .backbone import check_backbone
from .layer import check_layer
from .task import check_task

from . import attention, features, layers, pca, subspaces, tokens  # noqa: F401  they register themselves
from .base import Drawn, Figure, Subject, save

__all__ = ["Drawn", "Figure", "Subject", "save"]

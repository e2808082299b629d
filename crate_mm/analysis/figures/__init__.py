from . import attention, features, layers, pca, subspaces, tokens
from .base import Drawn, Figure, Subject, save

from . import attention, features, layers, pca, reconstruct, segments, subspaces, tokens
from .base import Drawn, Figure, Subject, save
from .style import STYLES, figure_style

"""Figures of ``tools/analyze.py``, registered in ``FIGURES``, and of other tools."""

from . import attention, features, layers, masks, objects, pca, reconstruct, segments, subspaces, tokens
from .base import Figure, FigureInput, FigureOutput, save
from .style import STYLES, InlineFigure, figure_style

__all__ = ["Figure", "FigureInput", "FigureOutput", "InlineFigure", "save"]

"""An operator of a layer: here a sparsification, ISTA with soft thresholding instead of ReLU.

A compression inherits from ``Compression`` and also takes ``num_heads``. CONTRIBUTING.md lists all declarations.
"""

import torch
import torch.nn.functional as F
from torch import nn

from crate_mm.models.layers import Sparsification
from crate_mm.registry import LAYERS


@LAYERS.register_module()
class MyLayer(Sparsification):
    """Map normalized tokens (B, N, d) to (B, N, d)."""

    def __init__(self, embed_dim, step_size=0.1, lambd=0.1):  # further arguments come from the config
        super().__init__()
        self.step_size, self.lambd = step_size, lambd
        self.dictionary = nn.Parameter(torch.empty(embed_dim, embed_dim))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, x):
        gradient = (x - x @ self.dictionary.T) @ self.dictionary
        # The code passes tap_code, where measures and figures read it.
        return self.tap_code(F.softshrink(x + self.step_size * gradient, self.step_size * self.lambd))

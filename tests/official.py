"""Weights under the names of the authors' own code, and what that code computes with them (tests/data/README.md)."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def reference(name: str) -> dict:
    """The reference numbers of a family, by model: ``reference("crate")["micro"]``."""
    return json.loads((Path(__file__).parent / "data" / f"{name}_reference.json").read_text())


def official_state_dict(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The parameters of a reference model, float64, each drawn from its place in the order of the names."""
    state_dict = {}
    for k, (name, shape) in enumerate(sorted(shapes.items())):
        z = np.random.RandomState(1000 + k).standard_normal(shape)
        if len(shape) == 1:
            z = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        elif len(shape) == 2:
            z = z / np.sqrt(shape[-1])
        else:
            z = 0.5 * z
        state_dict[name] = torch.from_numpy(z)
    return state_dict

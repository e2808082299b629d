"""Weights with the parameter names of the authors' code, and its results for them (tests/data/README.md)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crate_mm.models.translate import rename


def reference(name: str) -> dict:
    """Return the reference values of a family by model: ``reference("crate")["micro"]``."""
    return json.loads((Path(__file__).parent / "data" / f"{name}_reference.json").read_text())


def official_state_dict(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Return random float64 parameters of a reference model; a seed is 1000 + the name's index in sorted order."""
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


def reference_images(ref: dict, size: tuple[int, int] | None = None) -> Tensor:
    """Return the images of a reference model, ``(B, 3, H, W)``, by default of the model's image size."""
    shape = ref["batch_size"], 3, *(size or (ref["config"]["image_size"],) * 2)
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape))


def assert_close(ours, theirs, atol: float = 0) -> None:
    """Assert equality at a relative tolerance of 1e-9."""
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-9, atol=atol)


def assert_gradients(model: nn.Module, ref: dict, key_map: tuple, unused: str = "", atol: float = 0) -> None:
    """Compare the norm of each parameter's gradient, and of all gradients together."""
    theirs = rename(ref["grad_l2_by_parameter"], key_map, "the official code", unused)[0]
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == theirs.keys()
    assert_close([norms[name] for name in theirs], list(theirs.values()), atol)
    assert_close(np.linalg.norm(list(norms.values())), ref["grad_l2_total"])


def losses_by_step(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int, after_first: Callable[[], None]
) -> list[float]:
    """Return the loss of each step. Call ``after_first`` after the first backward pass; skip the last update."""
    losses = []
    for step in range(steps):
        value = loss()
        losses.append(value.item())
        if step == steps - 1:
            break
        optimizer.zero_grad()
        value.backward()
        if step == 0:
            after_first()
        optimizer.step()
    return losses

"""Repeat the random draws of a forward pass, such as those of stochastic depth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of the random generators of the host and, for a GPU, of the device."""
    on_device = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return torch.get_rng_state(), *on_device


@contextmanager
def replay(state: tuple[Tensor, ...] | None, device: torch.device) -> Iterator[None]:
    """Draw from a ``random_state`` within the ``with`` block, then restore the generators; None has no effect."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if len(state) > 1 else []):
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], device)
        yield

"""Numbers that must be finite, looked at without making the host wait for the device."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

ADVICE = (
    "try a smaller learning rate, more warm-up or optim_wrapper.clip_grad.max_norm=1, and go on from the last "
    "checkpoint with --resume"
)


class RunStoppedError(RuntimeError):
    """A run that stops itself, for a reason that the message gives."""


class OtherProcessError(RunStoppedError):
    """A run that stops as another one of its processes cannot go on, which says itself why."""


class _Pending(NamedTuple):
    value: Tensor
    arrived: "torch.cuda.Event"
    iteration: int
    lr: float


class FiniteCheck:
    """Stops a run at a number that is not finite.

    A number on a GPU is copied to the host behind the work that computes it, and looked at when the next one comes:
    the GPU is never idle for it. The steps between are lost with the run, as ``settle`` comes before a checkpoint.

    Args:
        name: of the number, for the message.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._pending: _Pending | None = None

    def see(self, value: Tensor, iteration: int, lr: float) -> None:
        """Take note of an iteration's number.

        Raises:
            RunStoppedError: it, or the one before it, is not finite.
        """
        self.settle()
        if value.is_cuda:
            host = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value.detach(), non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._pending = _Pending(host, arrived, iteration, lr)
        else:
            self._check(value, iteration, lr)

    def settle(self) -> None:
        """Look at the number that is still on its way; raise ``RunStoppedError`` if it is not finite."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.arrived.synchronize()
            self._check(pending.value, pending.iteration, pending.lr)

    def _check(self, value: Tensor, iteration: int, lr: float) -> None:
        if not torch.isfinite(value):
            raise RunStoppedError(
                f"the {self.name} is {value.item()} at iteration {iteration} (learning rate {lr:.3g}): {ADVICE}"
            )


@torch.no_grad()
def first_wrong_layer(
    model: nn.Module, batch: dict[str, Tensor], wrong_parameters: list[nn.Parameter]
) -> tuple[int, str]:
    """Say where numbers that are not finite come from, in the order of the computation.

    Args:
        model: as it was when they came up.
        batch: what its preprocessor was given then.
        wrong_parameters: those whose gradients were not finite.

    Returns:
        How little it says, and what: 0 for a weight, 1 for an output, which another process may not have with its part
        of the batch, 2 for a gradient, which all have, 3 for nothing.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return 0, f"the weights of {name} are not finite"
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple, output) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    try:
        model(**model.data_preprocessor(batch, True))
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return 1, f"the output of {found[0]} is the first that is not finite"
    names = [name for name, p in model.named_parameters() if any(p is wrong for wrong in wrong_parameters)]
    if names:
        return 2, f"the layers' outputs are finite; going back, the gradient of {names[-1]} is the first that is not"
    return 3, "the layers' outputs are finite here"

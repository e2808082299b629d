"""Numbers that must be finite, looked at without making the host wait for the device."""

from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ...models.tasks.base import task_of
from ...registry import HOOKS

ADVICE = (
    "try a smaller learning rate, more warm-up or optim_wrapper.clip_grad.max_norm=1, and go on from the last "
    "checkpoint with --resume"
)


class RunStoppedError(RuntimeError):
    """A run that stops itself, for a reason that the message gives."""


class PeerFailedError(RunStoppedError):
    """A run that stops as another one of its processes cannot go on, which says itself why."""


class SkippedStep(NamedTuple):
    """A step that was not taken: its number, counted from 1, and its learning rate.

    It is the ``in_a_row``-th in a row; 0 where a gradient scaler searches for its scale.
    """

    iteration: int
    lr: float
    in_a_row: int = 0


class AsyncHostCopy:
    """A number on its way from a device to the host, with what belongs to it; the device is never idle for it."""

    def __init__(self) -> None:
        self._sent: tuple[Tensor, torch.cuda.Event | None, Any] | None = None

    def send(self, value: Tensor, about: Any) -> None:
        """Have a number copied to the host behind the work that computes it. The one before must be received."""
        if value.is_cuda:
            host = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value.detach(), non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record()
            self._sent = host, arrival, about
        else:
            self._sent = value.detach(), None, about

    def receive(self) -> tuple[Tensor, Any] | None:
        """The number that was sent, on the host, and what belongs to it; None if there is none."""
        sent, self._sent = self._sent, None
        if sent is None:
            return None
        value, arrival, about = sent
        if arrival is not None:
            arrival.synchronize()
        return value, about


class FiniteCheck:
    """Stops a run at a number that is not finite.

    A number on a GPU is looked at when the next one comes. The steps between are lost with the run, as ``resolve_pending`` comes
    before a checkpoint.

    Args:
        name: of the number, for the message.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._underway = AsyncHostCopy()

    def submit(self, value: Tensor, iteration: int, lr: float) -> None:
        """Take note of an iteration's number.

        Raises:
            RunStoppedError: it, or the one before it, is not finite.
        """
        self.resolve_pending()
        self._underway.send(value, (iteration, lr))
        if not value.is_cuda:
            self.resolve_pending()

    def resolve_pending(self) -> None:
        """Look at the number that is still on its way; raise ``RunStoppedError`` if it is not finite."""
        received = self._underway.receive()
        if received is not None:
            value, (iteration, lr) = received
            self._check(value, iteration, lr)

    def _check(self, value: Tensor, iteration: int, lr: float) -> None:
        if not torch.isfinite(value):
            raise RunStoppedError(
                f"the {self.name} is {value.item()} at iteration {iteration} (learning rate {lr:.3g}): {ADVICE}"
            )


@torch.no_grad()
def locate_nonfinite(
    model: nn.Module, batch: dict[str, Tensor] | None, wrong_parameters: list[nn.Parameter]
) -> tuple[int, str]:
    """Say where numbers that are not finite come from, in the order of the computation.

    Args:
        model: as it was when they came up.
        batch: what its preprocessor was given then, if it is known.
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
        if batch is not None:
            model(**model.data_preprocessor(batch, True), mode="loss")  # what was computed
    except Exception:  # a model of a user's own, on numbers that are none
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return 1, f"the output of {found[0]} is the first that is not finite"
    names = [name for name, p in model.named_parameters() if any(p is wrong for wrong in wrong_parameters)]
    if names:
        return 2, f"the layers' outputs are finite; going back, the gradient of {names[-1]} is the first that is not"
    return 3, "the layers' outputs are finite here"


@HOOKS.register_module()
class StopOnNonFiniteLoss(Hook):
    """Report the steps that the OptimWrapper skips, count them in ``skipped_steps``, and stop when too many are in a
    row. Where it skips none (see its ``max_skipped_steps``), stop at a loss that is not finite.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.check = FiniteCheck("loss")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        wrapper = runner.optim_wrapper
        if not getattr(wrapper, "max_skipped_steps", 0):
            self.check.submit(outputs["loss"], runner.iter + 1, wrapper.get_lr()["lr"][0])
        else:
            self._report(runner, data_batch)

    @staticmethod
    def _report(runner: Runner, data_batch: dict[str, Tensor] | None) -> None:
        """Report a skipped step; ``data_batch`` is that of the step, or of the next one where the device decides."""
        wrapper, hub = runner.optim_wrapper, runner.message_hub
        step = wrapper.next_report()
        if step is None:
            return
        hub.update_info("skipped_steps", hub.runtime_info.get("skipped_steps", 0) + 1)
        what = f"the gradient norm is not finite at iteration {step.iteration} (learning rate {step.lr:.3g})"
        if not step.in_a_row:
            runner.logger.info(f"{what}: the step is skipped, and the gradient scaler tries half its scale")
            return
        in_a_row = f"{step.in_a_row} of at most {wrapper.max_skipped_steps} in a row"
        if step.in_a_row < wrapper.max_skipped_steps:
            runner.logger.warning(f"{what}: the step is skipped ({in_a_row})")
            return
        model = task_of(runner.model)
        with wrapper.optim_context(model):  # in the precision of the steps
            found = all_gather_object(locate_nonfinite(model, data_batch, wrapper.nonfinite_params))
        rank, (_, where) = min(enumerate(found), key=lambda finding: finding[1][0])
        on_process = f"on process {rank} " if len(found) > 1 else ""
        raise RunStoppedError(f"{what}, {in_a_row}; {on_process}{where}: {ADVICE}")

    def after_train_epoch(self, runner: Runner) -> None:
        # Before the checkpoint, which is of lower priority.
        self.before_save_checkpoint(runner, {})
        if getattr(runner.optim_wrapper, "max_skipped_steps", 0):
            self._report(runner, None)

    after_train = after_train_epoch  # the last epoch of a run may be cut

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.check.resolve_pending()
        if hasattr(runner.optim_wrapper, "resolve_pending"):
            runner.optim_wrapper.resolve_pending()

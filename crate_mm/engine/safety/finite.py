"""Check that losses and gradients are finite, without making the host wait for the device."""

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
    "try a smaller learning rate, more warm-up or optim_wrapper.clip_grad.max_norm=1, and resume from the last "
    "checkpoint with --resume"
)


class RunStoppedError(RuntimeError):
    """The run stops itself; the message gives the reason."""


class PeerFailedError(RunStoppedError):
    """The run stops because another rank cannot continue; that rank reports the cause."""


class SkippedStep(NamedTuple):
    """A step that was not taken.

    Attributes:
        iteration: the step's number, from 1.
        lr: the learning rate of the step.
        in_a_row: number of steps skipped in a row up to this one; 0 while a gradient scaler searches for its scale.
    """

    iteration: int
    lr: float
    in_a_row: int = 0


class AsyncHostCopy:
    """Asynchronous copy of a scalar from the device to the host, with attached data."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.cuda.Event | None, Any] | None = None

    def send(self, value: Tensor, data: Any) -> None:
        """Enqueue the copy after the work that computes the scalar. The previous scalar must have been received."""
        if value.is_cuda:
            host = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value.detach(), non_blocking=True)
            copy_done = torch.cuda.Event()
            copy_done.record()
            self._pending = host, copy_done, data
        else:
            self._pending = value.detach(), None, data

    def receive(self) -> tuple[Tensor, Any] | None:
        """Return the scalar on the host and its data, or None if nothing is pending."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        value, copy_done, data = pending
        if copy_done is not None:
            copy_done.synchronize()
        return value, data


class FiniteCheck:
    """Check that stops the run at a scalar that is not finite.

    A scalar on a GPU is checked when the next scalar is submitted. ``resolve_pending`` is called before a checkpoint is
    saved, so that no checkpoint contains an unchecked step.

    Args:
        name: name of the scalar, for the message.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._copy = AsyncHostCopy()

    def submit(self, value: Tensor, iteration: int, lr: float) -> None:
        """Submit an iteration's scalar.

        Raises:
            RunStoppedError: this scalar or the previous one is not finite.
        """
        self.resolve_pending()
        self._copy.send(value, (iteration, lr))
        if not value.is_cuda:
            self.resolve_pending()

    def resolve_pending(self) -> None:
        """Check the pending scalar; raise ``RunStoppedError`` if it is not finite."""
        scalar = self._copy.receive()
        if scalar is not None and not scalar[0].isfinite():
            value, (iteration, lr) = scalar
            raise RunStoppedError(
                f"the {self.name} is {value.item()} at iteration {iteration} (learning rate {lr:.3g}): {ADVICE}"
            )


@torch.no_grad()
def locate_nonfinite(
    model: nn.Module, batch: dict[str, Tensor] | None, nonfinite_params: list[nn.Parameter]
) -> tuple[int, str]:
    """Locate the first weight, output or gradient that is not finite, in the order of computation.

    Args:
        model: the model, with the weights of the skipped step.
        batch: input of its preprocessor at that step, or None if it is not known.
        nonfinite_params: parameters whose gradients were not finite.

    Returns:
        The priority of the finding (0 is the most specific) and its text. 0: a weight. 1: a layer's output, which may
        be finite on other processes, with other samples. 2: a gradient, which is the same on all processes. 3: nothing.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return 0, f"the weights of {name} are not finite"
    layers: list[str] = []

    def check_output(name: str, module: nn.Module, inputs: tuple, output) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            layers.append(name)

    hooks = [
        module.register_forward_hook(partial(check_output, name)) for name, module in model.named_modules() if name
    ]
    try:
        if batch is not None:
            model(**model.data_preprocessor(batch, True), mode="loss")  # repeats the step's forward pass
    except Exception:  # a user's model may raise anything on values that are not finite
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if layers:
        return 1, f"the output of {layers[0]} is the first that is not finite"
    names = [name for name, p in model.named_parameters() if any(p is param for param in nonfinite_params)]
    if names:
        return 2, (
            f"the layers' outputs are finite; in the backward pass, the gradient of {names[-1]} is the first that is "
            "not finite"
        )
    return 3, "the layers' outputs are finite here"


@HOOKS.register_module()
class StopOnNonFiniteLoss(Hook):
    """Report the steps that the OptimWrapper skips, count them in ``skipped_steps``, and stop after too many in a row.

    With ``max_skipped_steps=0``, stop at the first loss that is not finite.
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
        """Report a skipped step; ``data_batch`` is the step's batch, or with ``decide_on_device`` the next batch."""
        wrapper, hub = runner.optim_wrapper, runner.message_hub
        step = wrapper.next_report()
        if step is None:
            return
        hub.update_info("skipped_steps", hub.runtime_info.get("skipped_steps", 0) + 1)
        message = f"the gradient norm is not finite at iteration {step.iteration} (learning rate {step.lr:.3g})"
        if not step.in_a_row:
            runner.logger.info(f"{message}: the step is skipped, and the gradient scaler halves its scale")
            return
        in_a_row = f"{step.in_a_row} of at most {wrapper.max_skipped_steps} in a row"
        if step.in_a_row < wrapper.max_skipped_steps:
            runner.logger.warning(f"{message}: the step is skipped ({in_a_row})")
            return
        model = task_of(runner.model)
        with wrapper.optim_context(model):  # in the dtype of the training step
            findings = all_gather_object(locate_nonfinite(model, data_batch, wrapper.nonfinite_params))
        rank, (_, where) = min(enumerate(findings), key=lambda finding: finding[1][0])
        on_process = f"on process {rank} " if len(findings) > 1 else ""
        raise RunStoppedError(f"{message}, {in_a_row}; {on_process}{where}: {ADVICE}")

    def after_train_epoch(self, runner: Runner) -> None:
        # Before the checkpoint: CheckpointHook has a lower priority.
        self.before_save_checkpoint(runner, {})
        if getattr(runner.optim_wrapper, "max_skipped_steps", 0):
            self._report(runner, None)

    after_train = after_train_epoch  # max_steps may end the run within an epoch

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.check.resolve_pending()
        if hasattr(runner.optim_wrapper, "resolve_pending"):
            runner.optim_wrapper.resolve_pending()

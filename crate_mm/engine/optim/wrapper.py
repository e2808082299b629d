"""Optimizers and mixed precision. MMEngine registers every optimizer of torch.optim; Lion is registered here."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import lion_pytorch
import mmengine.optim
import torch
from mmengine.device import get_device
from torch import Tensor, nn

from ...registry import OPTIM_WRAPPERS, OPTIMIZERS
from ...torch_private import foreach_add_, foreach_mul, foreach_mul_, foreach_norm, foreach_sign_
from ..parallel.batch_norm import StatisticsBackup
from ..safety.finite import AsyncHostCopy, FiniteCheck, SkippedStep


@OPTIMIZERS.register_module()
class Lion(lion_pytorch.Lion):
    """lion-pytorch's Lion with multi-tensor updates: a few GPU kernels in all, instead of six per parameter.

    16-bit parameters are updated one by one. Results are bit-identical to lion-pytorch without ``foreach``. (Its
    ``foreach`` variant interpolates differently, which flips the signs of some updates.) States are interchangeable.

    As in PyTorch's fused optimizers, a nonzero attribute ``found_inf`` skips the step on the device, without a host
    synchronization. A gradient scaler or ``OptimWrapper`` sets this tensor on the parameters' device. A skipped step
    sets the gradients to 0.

    Args:
        params, lr, betas, weight_decay, decoupled_weight_decay: as for lion-pytorch's ``Lion``.
    """

    _step_supports_amp_scaling = True  # PyTorch's name for support of ``found_inf``

    def __init__(
        self,
        params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay, decoupled_weight_decay=decoupled_weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if getattr(self, "grad_scale", None) is not None:
            raise ValueError("Lion needs unscaled gradients: call the scaler's unscale_ before its step")
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            # Multi-tensor operations round 16-bit values differently.
            for p in (p for p in params if p.dtype.itemsize < 4):
                self._step_alone(group, p, found_inf)
            for dtype in sorted({p.dtype for p in params if p.dtype.itemsize >= 4}, key=str):
                self._step_together(group, [p for p in params if p.dtype == dtype], found_inf)
        return loss

    def _step_alone(self, group: dict, p: nn.Parameter, found_inf: Tensor | None) -> None:
        average = self.state[p]["exp_avg"]
        before = None if found_inf is None else [p.clone(), average.clone()]
        self.update_fn(p, p.grad, average, group["lr"], self._decay(group), *group["betas"])
        for tensor, old in zip((p, average), before or ()):
            tensor.copy_(torch.where(found_inf > 0, old, tensor))

    def _step_together(self, group: dict, params: list[nn.Parameter], found_inf: Tensor | None) -> None:
        """Take the step of a group's parameters of one dtype.

        A skipped step multiplies the weights and the momentum by 1 and adds 0, so that no copy is needed. Gradients may
        be NaN; an integer multiplication of their bits sets them to 0.
        """
        lr, (beta1, beta2) = group["lr"], group["betas"]
        gradients, averages = [p.grad for p in params], [self.state[p]["exp_avg"] for p in params]
        decay, momentum = 1 - lr * self._decay(group), beta2
        if found_inf is not None:
            skip, dtype = found_inf.reshape(()) > 0, params[0].dtype
            decay, beta1, momentum = (
                torch.full((), factor, dtype=dtype, device=skip.device).masked_fill_(skip, neutral)
                for factor, neutral in ((decay, 1), (beta1, 0), (beta2, 1))
            )
            bits = torch.int32 if dtype.itemsize == 4 else torch.int64
            foreach_mul_([gradient.view(bits) for gradient in gradients], (~skip).to(bits))
        foreach_mul_(params, decay)
        updates = foreach_mul(averages, beta1)
        foreach_add_(updates, gradients, alpha=1 - group["betas"][0])
        foreach_sign_(updates)
        foreach_add_(params, updates, alpha=-lr)
        foreach_mul_(averages, momentum)
        foreach_add_(averages, gradients, alpha=1 - beta2)

    def _decay(self, group: dict) -> float:
        return group["weight_decay"] / (self._init_lr if self.decoupled_wd else 1)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(mmengine.optim.OptimWrapper):
    """MMEngine's wrapper that skips steps with non-finite gradients.

    With Lion, a non-finite gradient would go unnoticed: the weights stay finite, but the momentum does not recover. All
    ranks decide alike, because they have the same gradients. ``StopOnNonFiniteLoss`` stops the run after
    ``max_skipped_steps`` in a row. A skipped step leaves the model unchanged, BatchNorm's running statistics included.

    Args:
        max_skipped_steps: number of steps skipped in a row that stops the run. With 0, the first non-finite gradient
            stops the run; on a GPU one step later, so that the host does not wait for the GPU at every step.
        decide_on_device: let the device decide whether to skip a step. The host learns the decision one step later and
            does not wait for the device. The optimizer must support ``found_inf``, as Lion and PyTorch's fused
            optimizers do. With None, the device decides if it is a GPU and the
            optimizer supports ``found_inf``. The steps are the same either way.
        args, kwargs: as for MMEngine's wrapper.

    Attributes:
        grad_norm: Euclidean norm of the last step's gradients before clipping, as a tensor.
        grad_norms: Euclidean norm of the gradient of each of ``grad_norm_params``, ``(P,)``.
        grad_norm_params: the parameters that had a gradient at the last step.
        loss_weight: factor of the next micro-batch's loss (see ``TrainLoop``); 1 if all micro-batches of the step have
            equal weight.

    Raises:
        ValueError: ``decide_on_device=True`` with an optimizer that does not support ``found_inf``.
    """

    def __init__(self, *args, max_skipped_steps: int = 5, decide_on_device: bool | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.max_skipped_steps = max_skipped_steps
        self.loss_weight = 1.0
        if decide_on_device and not self._supports_found_inf():
            raise ValueError(
                f"decide_on_device=True needs an optimizer that can skip a step on the device, which "
                f"{type(self.optimizer).__name__} with its current settings cannot: leave out decide_on_device, use "
                "Lion, or set the optimizer's fused=True if PyTorch has it"
            )
        self.decide_on_device = get_device() == "cuda" if decide_on_device is None else decide_on_device
        self.grad_norm: Tensor | None = None
        self.grad_norms: Tensor | None = None
        self.grad_norm_params: list[nn.Parameter] = []
        self.check = FiniteCheck("gradient norm")
        self.statistics = StatisticsBackup()
        self._norm = AsyncHostCopy()
        self._skipped_norms: tuple[list[nn.Parameter], Tensor | None] = [], None  # at the last skipped step
        self._skipped = False
        self._skipped_in_a_row = 0
        self._unreported: SkippedStep | None = None

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        k = self._accumulative_counts  # MMEngine counts micro-batches; an iteration here is a complete step
        super().initialize_count_status(model, init_counts * k, max_counts * k)

    def scale_loss(self, loss: Tensor) -> Tensor:
        loss = super().scale_loss(loss)
        return loss if self.loss_weight == 1 else loss * self.loss_weight

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        is_first_micro_batch = self._inner_count % self._accumulative_counts == 0
        if is_first_micro_batch and self.max_skipped_steps:
            self.statistics.store(model)
        with super().optim_context(model):
            yield

    def autocast(self, model: nn.Module) -> AbstractContextManager:
        """Return the context in which the model's losses are computed."""
        return nullcontext()

    @property
    def skipped(self) -> bool:
        """Whether the last step was skipped. With ``decide_on_device``, the host waits for the device."""
        self.resolve_pending()
        return self._skipped

    @property
    def skipped_in_a_row(self) -> int:
        """Number of steps skipped in a row up to the last one. With ``decide_on_device``, the host waits."""
        self.resolve_pending()
        return self._skipped_in_a_row

    @property
    def nonfinite_params(self) -> list[nn.Parameter]:
        """Parameters whose gradient norm was not finite at the last skipped step. The host waits for the device.

        The list is empty if only the norm over all parameters is not finite.
        """
        params, norms = self._skipped_norms
        return [p for p, finite in zip(params, norms.isfinite().tolist()) if not finite] if params else []

    def next_report(self) -> SkippedStep | None:
        """Return a skipped step that has not been reported yet and is known to the host, or None."""
        step, self._unreported = self._unreported, None
        return step

    def resolve_pending(self) -> None:
        """Receive the device's decision on the last step; raise ``RunStoppedError`` if the decision ends the run.

        Called before a checkpoint is written.
        """
        self.check.resolve_pending()
        pending = self._norm.receive()
        if pending is not None:
            norm, step = pending
            self._record(not norm.isfinite(), step)

    def step(self, **kwargs) -> None:
        self.resolve_pending()  # does not wait: the last step's norm has arrived by now
        on_device = self.decide_on_device and self.max_skipped_steps and self._supports_found_inf()
        # Before its first step, the optimizer has no state that it could leave unchanged.
        if not (on_device and self.optimizer.state):
            if not self._check_gradients():
                super().step(**kwargs)
            return
        if self._measure():
            self._norm.send(self.grad_norm, self._this_step())
            self._step_if_finite(**kwargs)

    def _step_if_finite(self, **kwargs) -> None:
        """Take the step, unless ``grad_norm`` is not finite; the host does not wait for the device.

        The optimizer must have a state and support ``found_inf``.
        """
        found_inf = (~self.grad_norm.isfinite()).float()
        self.statistics.restore(found_inf > 0)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, found_inf
        try:
            super().step(**kwargs)
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf

    def _supports_found_inf(self) -> bool:
        """Return whether the optimizer can skip a step on the device. ``ShardedOptimizer`` cannot."""
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def _measure(self) -> list[nn.Parameter]:
        """Compute ``grad_norm`` and ``grad_norms``; return the parameters that have a gradient."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if params:
            self.grad_norms, self.grad_norm_params = torch.stack(foreach_norm([p.grad for p in params])), params
            self.grad_norm = self.grad_norms.norm()
        return params

    def _check_gradients(self) -> bool:
        """Check the gradients; record and return whether the step is skipped."""
        skipped, params = False, self._measure()
        if params and not self.max_skipped_steps:
            step = self._this_step()
            self.check.submit(self.grad_norm, step.iteration, step.lr)
        elif params and not self.grad_norm.isfinite():
            skipped = True
            self.statistics.restore()
        self._record(skipped, self._this_step())
        return skipped

    def _this_step(self) -> SkippedStep:
        return SkippedStep(self.message_hub.get_info("iter", 0) + 1, self.param_groups[0]["lr"])

    def _record(self, skipped: bool, step: SkippedStep) -> None:
        self._skipped = bool(skipped)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._skipped else 0
        if self._skipped:
            self._skipped_norms = self.grad_norm_params, self.grad_norms
            self._unreported = step._replace(in_a_row=self._skipped_in_a_row)

    def _clip_grad(self) -> None:
        """Clip by ``grad_norm``; MMEngine would compute the norm again and make the host wait for the device.

        With ``clip_grad=dict(max_norm=..., per_parameter=True)``, each parameter's gradient is clipped by its own norm.
        """
        if self.clip_grad_kwargs.get("per_parameter") and self.grad_norms is not None:
            factors = (self.clip_grad_kwargs["max_norm"] / (self.grad_norms + 1e-6)).clamp(max=1)
            foreach_mul_([p.grad for p in self.grad_norm_params], list(factors.unbind()))
            return
        if self.clip_grad_kwargs.keys() - {"per_parameter"} != {"max_norm"} or self.grad_norm is None:
            super()._clip_grad()
            return
        # The formula of torch.nn.utils.clip_grad_norm_.
        factor = (self.clip_grad_kwargs["max_norm"] / (self.grad_norm + 1e-6)).clamp(max=1)
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        foreach_mul_(gradients, factor)


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision in bf16, on any device, without gradient scaling: bf16 has float32's range.

    Args:
        dtype: 'bfloat16'.
        kwargs: as for ``OptimWrapper``.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs) -> None:
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    def autocast(self, model: nn.Module) -> AbstractContextManager:
        return torch.autocast(next(model.parameters()).device.type, self.dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), self.autocast(model):
            yield


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(AutocastOptimWrapper):
    """Mixed precision in fp16, with a gradient scaler: fp16 has a small range.

    The scaler halves its scale at each skipped step. While the scale is above 1, the scaler is still searching for its
    scale, and skipped steps do not count towards ``max_skipped_steps``.

    Args:
        dtype: 'float16'.
        loss_scale: 'dynamic', a number for a fixed scale, or arguments of ``torch.amp.GradScaler``.
        kwargs: as for ``OptimWrapper``.
    """

    def __init__(self, dtype: str = "float16", loss_scale: str | float | dict = "dynamic", **kwargs) -> None:
        super().__init__(dtype, **kwargs)
        if not (loss_scale == "dynamic" or isinstance(loss_scale, dict) or (_is_number(loss_scale) and loss_scale > 0)):
            raise ValueError(
                f"loss_scale must be 'dynamic', a positive number or GradScaler's arguments, got {loss_scale!r}"
            )
        self.max_skipped_steps = max(self.max_skipped_steps, 1)  # the scaler's search begins with skipped steps
        self.decide_on_device = False  # the scaler makes the host wait anyway
        self.fixed_scale = float(loss_scale) if _is_number(loss_scale) else None
        settings = {"init_scale": self.fixed_scale} if self.fixed_scale else loss_scale
        self.loss_scaler = torch.amp.GradScaler(get_device(), **(settings if isinstance(settings, dict) else {}))

    def backward(self, loss: Tensor, **kwargs) -> None:
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        before = self.loss_scaler.get_scale()
        self.loss_scaler.unscale_(self.optimizer)
        if not self._check_gradients():
            if self.clip_grad_kwargs:
                self._clip_grad()
            self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self.fixed_scale)
        if self._skipped and before > max(self.loss_scaler.get_scale(), 1):
            self._skipped_in_a_row = 0
            self._unreported = self._unreported._replace(in_a_row=0)

    def state_dict(self) -> dict:
        """Return the optimizer's state, with the scaler's state under ``loss_scaler``."""
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        state_dict = dict(state_dict)
        if "loss_scaler" in state_dict:
            if not all(map(_is_number, state_dict["loss_scaler"].values())):
                raise ValueError("expected numbers in the state of the gradient scaler")
            self.loss_scaler.load_state_dict(state_dict.pop("loss_scaler"))
        super().load_state_dict(state_dict)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def training_dtype(optim_wrapper: dict | None) -> str:
    """Return the training dtype of a config's ``optim_wrapper``: 'float32', except for mixed precision."""
    kind = (optim_wrapper or {}).get("type", "OptimWrapper")
    wrapper = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(wrapper, type) and issubclass(wrapper, AutocastOptimWrapper)):
        return "float32"
    return optim_wrapper.get("dtype", inspect.signature(wrapper).parameters["dtype"].default)


def amp_dtype() -> str:
    """Return the dtype of ``--amp`` on this machine: bf16 on CPUs and on GPUs that support it, otherwise fp16."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return "bfloat16"


def amp_optim_wrapper() -> dict:
    """Return the OptimWrapper config of ``--amp`` on this machine: autocast for bf16, with a scaler for fp16."""
    if amp_dtype() == "float16":
        return {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    return {"type": "AutocastOptimWrapper", "dtype": "bfloat16"}

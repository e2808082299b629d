"""Optimizers and mixed precision. Every optimizer of torch.optim and Lion are registered by MMEngine or here."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lion_pytorch
import mmengine.optim
import torch
from mmengine.device import get_device
from torch import Tensor, nn

from ...registry import OPTIM_WRAPPERS, OPTIMIZERS
from ...torch_private import foreach_add_, foreach_mul, foreach_mul_, foreach_norm, foreach_sign_
from ..parallel.batch_norm import KeptStatistics
from ..safety.finite import AsyncHostCopy, FiniteCheck, SkippedStep


@OPTIMIZERS.register_module()
class Lion(lion_pytorch.Lion):
    """lion-pytorch's Lion, which updates all parameters together: a few kernels on a GPU where its own takes six each.

    Parameters of 16 bits are updated one by one. The result is lion-pytorch's to the last bit. (Its own ``foreach``
    variant interpolates otherwise, which flips the signs of some updates.) States are interchangeable with
    lion-pytorch's.

    As PyTorch's fused optimizers do, it takes no step where its attribute ``found_inf``, a tensor on the parameters'
    device that a gradient scaler or our wrapper sets, is not zero; the host is not asked. The gradients are 0 then.

    Args:
        params, lr, betas, weight_decay, decoupled_weight_decay: as for lion-pytorch's ``Lion``.
    """

    _step_supports_amp_scaling = True  # what PyTorch calls an optimizer that heeds ``found_inf``

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
            raise ValueError("Lion takes gradients that are unscaled: call the scaler's unscale_ before its step")
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            # Of numbers of 16 bits the operations on lists round otherwise.
            for p in (p for p in params if p.dtype.itemsize < 4):
                self._step_alone(group, p, found_inf)
            for dtype in sorted({p.dtype for p in params if p.dtype.itemsize >= 4}, key=str):
                self._step_together(group, [p for p in params if p.dtype == dtype], found_inf)
        return loss

    def _step_alone(self, group: dict, p: nn.Parameter, found_inf: Tensor | None) -> None:
        average = self.state[p]["exp_avg"]
        before = None if found_inf is None else [p.clone(), average.clone()]
        self.update_fn(p, p.grad, average, group["lr"], self._decay(group), *group["betas"])
        for tensor, kept in zip((p, average), before or ()):
            tensor.copy_(torch.where(found_inf > 0, kept, tensor))

    def _step_together(self, group: dict, params: list[nn.Parameter], found_inf: Tensor | None) -> None:
        """Take the step of a group's parameters of one dtype.

        A step that is left out multiplies the weights and the momentum by 1 and adds 0 to them, so that nothing need be
        kept: the gradients, which may be NaN, become 0 by their bits.
        """
        lr, (beta1, beta2) = group["lr"], group["betas"]
        gradients, averages = [p.grad for p in params], [self.state[p]["exp_avg"] for p in params]
        decay, keep = 1 - lr * self._decay(group), beta2
        if found_inf is not None:
            skip, dtype = found_inf.reshape(()) > 0, params[0].dtype
            decay, beta1, keep = (
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
        foreach_mul_(averages, keep)
        foreach_add_(averages, gradients, alpha=1 - beta2)

    def _decay(self, group: dict) -> float:
        return group["weight_decay"] / (self._init_lr if self.decoupled_wd else 1)


class _MicroBatchCountMixin:
    """Counts micro-batches inside, as an iteration of ours is a whole optimisation step."""

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        k = self._accumulative_counts
        super().initialize_count_status(model, init_counts * k, max_counts * k)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(_MicroBatchCountMixin, mmengine.optim.OptimWrapper):
    """MMEngine's wrapper, which takes no step whose gradients are not finite.

    It would not show later: Lion's weights stay finite, its momentum never is again. The processes decide alike, since
    they have the same gradients. Whoever calls it stops the run, ``max_skipped_steps`` in a row being too many. A step
    that is skipped leaves the model as it was before the step, BatchNorm's running statistics too.

    Args:
        max_skipped_steps: with 0 no step is skipped and the first such gradient stops the run, on a GPU one step later,
            so that the host need not wait for the GPU at every step.
        decide_on_device: whether the device decides that a step is skipped, and the host learns of it one step later,
            so that it need not wait for the device. The optimizer must heed ``found_inf``, as Lion and PyTorch's fused
            optimizers do. None: on a GPU, if the optimizer does. The steps are the same.
        args, kwargs: as for MMEngine's.

    ``grad_norm`` is the Euclidean norm of the last step's gradients, before they are clipped, as a tensor;
    ``grad_norms`` are those of the single parameters, ``measured``, as ``(P,)``. ``weight`` is the factor of the
    next micro-batch's loss, 1 where all micro-batches of the step count as much, see ``TrainLoop``.

    Raises:
        ValueError: ``decide_on_device=True`` with an optimizer that does not heed ``found_inf``.
    """

    def __init__(self, *args, max_skipped_steps: int = 5, decide_on_device: bool | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.max_skipped_steps = max_skipped_steps
        self.loss_weight = 1.0
        if decide_on_device and not self._supports_found_inf():
            raise ValueError(
                f"decide_on_device=True needs an optimizer that can leave a step out by itself, and "
                f"{type(self.optimizer).__name__} as it is set cannot: leave decide_on_device out, or take Lion or, "
                "where PyTorch has it, the optimizer's fused=True"
            )
        self.decide_on_device = get_device() == "cuda" if decide_on_device is None else decide_on_device
        self.grad_norm: Tensor | None = None
        self.grad_norms: Tensor | None = None
        self.grad_norm_params: list[nn.Parameter] = []
        self.check = FiniteCheck("gradient norm")
        self.statistics = KeptStatistics()
        self._norm = AsyncHostCopy()
        self._wrong: tuple[list[nn.Parameter], Tensor | None] = [], None  # measured at the last skipped step
        self._skipped = False
        self._skipped_in_a_row = 0
        self._unreported: SkippedStep | None = None

    def scale_loss(self, loss: Tensor) -> Tensor:
        loss = super().scale_loss(loss)
        return loss if self.loss_weight == 1 else loss * self.loss_weight

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        first = self._inner_count % self._accumulative_counts == 0  # of the micro-batches of a step
        if first and self.max_skipped_steps:
            self.statistics.store(model)
        with super().optim_context(model):
            yield

    @property
    def skipped(self) -> bool:
        """Whether the last step was skipped. Where the device has decided, the host waits for it."""
        self.resolve_pending()
        return self._skipped

    @property
    def skipped_in_a_row(self) -> int:
        """How many steps up to the last one were skipped. Where the device has decided, the host waits for it."""
        self.resolve_pending()
        return self._skipped_in_a_row

    @property
    def nonfinite_params(self) -> list[nn.Parameter]:
        """Those whose gradients had a norm that is not finite at the last skipped step. The host waits for the device.

        None where all are finite, and only the norm of all together is not.
        """
        params, norms = self._wrong
        return [p for p, finite in zip(params, norms.isfinite().tolist()) if not finite] if params else []

    def next_report(self) -> SkippedStep | None:
        """A skipped step that has not been reported, as far as the host knows of it."""
        step, self._unreported = self._unreported, None
        return step

    def resolve_pending(self) -> None:
        """Learn what the device has decided about the last step, and raise ``RunStoppedError`` where that ends the run.

        A checkpoint comes after it.
        """
        self.check.resolve_pending()
        arrived = self._norm.receive()
        if arrived is not None:
            norm, step = arrived
            self._note(not norm.isfinite(), step)

    def step(self, **kwargs) -> None:
        self.resolve_pending()  # by now the last step's decision has arrived
        decides = self.decide_on_device and self.max_skipped_steps and self._supports_found_inf()
        # Before the first step the optimizer has no state that it could leave as it is.
        if not (decides and self.optimizer.state):
            if not self._check_gradients():
                super().step(**kwargs)
            return
        if self._measure():
            self._norm.send(self.grad_norm, self._this_step())
            self._step_if_finite(**kwargs)

    def _step_if_finite(self, **kwargs) -> None:
        """Take the step, unless the device finds that the norm that was measured is not finite; no host waits for it.

        The optimizer has a state and heeds ``found_inf``.
        """
        found_inf = (~self.grad_norm.isfinite()).float()
        self.statistics.restore(found_inf > 0)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, found_inf
        try:
            super().step(**kwargs)
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf

    def _supports_found_inf(self) -> bool:
        """Whether the optimizer leaves a step out by itself; ZeRO, which may take an optimizer's place, does not."""
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def _measure(self) -> list[nn.Parameter]:
        """The parameters that have a gradient, whose norm becomes ``grad_norm``."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if params:
            self.grad_norms, self.grad_norm_params = torch.stack(foreach_norm([p.grad for p in params])), params
            self.grad_norm = self.grad_norms.norm()
        return params

    def _check_gradients(self) -> bool:
        """Look at the gradients, and note whether the step is skipped."""
        skipped, params = False, self._measure()
        if params and not self.max_skipped_steps:
            step = self._this_step()
            self.check.submit(self.grad_norm, step.iteration, step.lr)
        elif params and not self.grad_norm.isfinite():
            skipped = True
            self.statistics.restore()
        self._note(skipped, self._this_step())
        return skipped

    def _this_step(self) -> SkippedStep:
        return SkippedStep(self.message_hub.get_info("iter", 0) + 1, self.param_groups[0]["lr"])

    def _note(self, skipped: bool, step: SkippedStep) -> None:
        self._skipped = bool(skipped)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._skipped else 0
        if self._skipped:
            self._wrong = self.grad_norm_params, self.grad_norms
            self._unreported = step._replace(in_a_row=self._skipped_in_a_row)

    def _clip_grad(self) -> None:
        """MMEngine's, which measures the norm again and makes the host wait for it, where that need not be."""
        if self.clip_grad_kwargs.keys() != {"max_norm"} or self.grad_norm is None:
            super()._clip_grad()
            return
        # As torch.nn.utils.clip_grad_norm_ does.
        factor = (self.clip_grad_kwargs["max_norm"] / (self.grad_norm + 1e-6)).clamp(max=1)
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        foreach_mul_(gradients, factor)


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision without gradient scaling, on any device: for bf16, whose range is that of float32.

    Args:
        dtype: 'bfloat16'.
        kwargs: as for ``OptimWrapper``.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs) -> None:
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, self.dtype):
            yield


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(AutocastOptimWrapper):
    """Mixed precision with a gradient scaler, for fp16, whose range is small.

    The scaler halves its scale at each step that is skipped. As long as it is above 1, that is its search for one that
    fits, and does not count towards ``max_skipped_steps``.

    Args:
        dtype: 'float16'.
        loss_scale: 'dynamic', a number that stays as it is, or arguments of ``torch.amp.GradScaler``.
        kwargs: as for ``OptimWrapper``.
    """

    def __init__(self, dtype: str = "float16", loss_scale: str | float | dict = "dynamic", **kwargs) -> None:
        super().__init__(dtype, **kwargs)
        if not (loss_scale == "dynamic" or isinstance(loss_scale, dict) or (_is_number(loss_scale) and loss_scale > 0)):
            raise ValueError(f"loss_scale must be 'dynamic', a number above 0 or GradScaler's settings: {loss_scale!r}")
        self.max_skipped_steps = max(self.max_skipped_steps, 1)  # the scaler's search begins with skipped steps
        self.decide_on_device = False  # the scaler makes the host wait in any case
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
        """The optimizer's state, with the scaler's under ``loss_scaler``."""
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        state_dict = dict(state_dict)
        if "loss_scaler" in state_dict:
            if not all(map(_is_number, state_dict["loss_scaler"].values())):
                raise ValueError("the state of the gradient scaler is not of numbers")
            self.loss_scaler.load_state_dict(state_dict.pop("loss_scaler"))
        super().load_state_dict(state_dict)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def training_dtype(optim_wrapper: dict | None) -> str:
    """The precision that a config's ``optim_wrapper`` trains in: 'float32', unless it is one of mixed precision."""
    kind = (optim_wrapper or {}).get("type", "OptimWrapper")
    wrapper = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(wrapper, type) and issubclass(wrapper, AutocastOptimWrapper)):
        return "float32"
    return optim_wrapper.get("dtype", inspect.signature(wrapper).parameters["dtype"].default)


def amp_dtype() -> str:
    """The precision for ``--amp`` here: bf16 on CPUs and where the GPU has it, else fp16."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return "bfloat16"


def amp_optim_wrapper() -> dict:
    """Config of the OptimWrapper for ``--amp`` here: autocast alone for bf16, with a gradient scaler for fp16."""
    if amp_dtype() == "float16":
        return {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    return {"type": "AutocastOptimWrapper", "dtype": "bfloat16"}

"""Schedules of learning rate and weight decay, and scaling of the learning rate with the batch size."""

import logging
import math
from typing import ClassVar

from mmengine.optim import OptimWrapper

from ...io.log import print_log
from ...registry import PARAM_SCHEDULERS
from ..mmengine_private import ParamScheduler


class WarmupCosine(ParamScheduler):
    """Schedule of one setting of all parameter groups: linear warm-up, then a cosine, over the run's iterations.

    See ``WarmupCosineLR`` for the curve and the arguments.

    Attributes:
        setting: key of the parameter groups.
        title: name of the setting in messages.
    """

    setting: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self,
        optimizer: OptimWrapper,
        warmup: float,
        end: int,
        start_factor: float = 0.01,
        max_warmup: float = 0.2,
        last_step: int = -1,
        end_factor: float = 0.0,
    ) -> None:
        if warmup < 0 or end <= 0:
            raise ValueError(f"a schedule needs warmup >= 0 and end > 0, got {warmup} and {end}")
        self.warmup = min(warmup, max_warmup * end)
        self.start_factor = start_factor
        self.end_factor = end_factor
        super().__init__(optimizer, self.setting, begin=0, end=end, last_step=last_step, by_epoch=False)

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args,
        warmup: float,
        end: int,
        epoch_length: int,
        by_epoch: bool = True,
        end_step: int | None = None,
        **kwargs,
    ) -> "WarmupCosine":
        """Build from lengths in epochs; MMEngine calls this method for ``convert_to_iter_based=True``."""
        if not by_epoch:
            raise ValueError(f"{cls.__name__} takes its lengths in epochs: leave out by_epoch")
        return cls(*args, warmup=warmup * epoch_length, end=end_step or end * epoch_length, **kwargs)

    def factor(self, step: int) -> float:
        """Return the factor by which the base value is multiplied at iteration ``step``."""
        if step < self.warmup:
            return self.start_factor + (1 - self.start_factor) * step / self.warmup
        progress = min((step - self.warmup) / (self.end - self.warmup), 1.0)
        return self.end_factor + (1 - self.end_factor) * (1 + math.cos(math.pi * progress)) / 2

    def _get_value(self) -> list[float]:
        return [base * self.factor(self.last_step) for base in self.base_values]

    def state_dict(self) -> dict:
        """Return the current step and the length; the config determines the other settings."""
        return {"last_step": self.last_step, "global_step": self._global_step, "end": self.end}

    def load_state_dict(self, state_dict: dict) -> None:
        if state_dict["end"] != self.end:
            print_log(
                f"the length of the schedule has changed from {state_dict['end']} to {self.end} iterations: the "
                f"{self.title} follows the new curve",
                logger="current",
                level=logging.WARNING,
            )
        self.last_step = state_dict["last_step"]
        self._global_step = state_dict["global_step"]
        for group, value in zip(self.optimizer.param_groups, self._get_value()):
            group[self.setting] = value
        self._last_value = self._get_value()


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(WarmupCosine):
    """Linear warm-up, then cosine decay to ``end_factor``, as one curve over the iterations of a run.

    With W iterations of warm-up, T iterations in all and the base learning rate ``lr``, iteration ``i`` uses

        lr * (start_factor + (1 - start_factor) * i / W)                            for i < W
        lr * (end_factor + (1 - end_factor) (1 + cos(pi (i - W) / (T - W))) / 2)    for W <= i < T

    The config determines T. A shorter ``train_cfg.max_epochs`` compresses the curve. A resumed run follows the curve of
    its new config. To follow the curve of a longer run and stop early, set ``end`` to the longer run's epochs.

    Args:
        warmup: W in epochs, at most the fraction ``max_warmup`` of T.
        end: T in epochs (default: the run's ``max_epochs``).
        start_factor: fraction of ``lr`` at the first iteration.
        max_warmup: upper limit of W / T, for short runs.
        end_factor: fraction of ``lr`` at the end of the cosine, such as 0.01 to go from 1e-3 to 1e-5.
        end_step: T in steps, instead of ``end`` (default: the run's ``max_steps``, if it is set and ``end`` is not).

    Raises:
        ValueError: ``warmup`` is negative, ``end`` is not positive, or ``end_factor`` is outside [0, 1].
    """

    setting = "lr"
    title = "learning rate"

    def __init__(self, *args, end_factor: float = 0.0, **kwargs) -> None:
        if not 0 <= end_factor <= 1:
            raise ValueError(f"end_factor must be a fraction of the learning rate, from 0 to 1, got {end_factor}")
        super().__init__(*args, end_factor=end_factor, **kwargs)


@PARAM_SCHEDULERS.register_module()
class CosineWeightDecay(WarmupCosine):
    """Half a cosine from each parameter group's weight decay to ``end_factor`` times this value, as in DINO.

    Groups without weight decay are not changed.

    Args:
        end: length in epochs (default: the run's length).
        end_factor: final factor, such as 10 to go from 0.04 to 0.4.

    Raises:
        ValueError: ``end_factor`` is negative.
    """

    setting = "weight_decay"
    title = "weight decay"

    def __init__(self, optimizer: OptimWrapper, end: int, end_factor: float, **kwargs) -> None:
        if not end_factor >= 0:
            raise ValueError(f"end_factor, a factor of the weight decay, must be at least 0, got {end_factor}")
        super().__init__(optimizer, end=end, end_factor=end_factor, **kwargs)

    @classmethod
    def build_iter_from_epoch(cls, *args, **kwargs) -> "CosineWeightDecay":
        """Build as ``WarmupCosine.build_iter_from_epoch`` does, without a warm-up."""
        return super().build_iter_from_epoch(*args, warmup=0, **kwargs)


def scale_lr(optim_wrapper: dict, auto_scale_lr: dict | None, global_batch_size: int) -> dict:
    """Scale the learning rate of an OptimWrapper's config with the batch size, if ``auto_scale_lr`` is enabled.

    The scaled rate is ``lr * global_batch_size / base_batch_size`` (Goyal et al., arXiv 1706.02677). MMEngine scales a
    built optimizer instead, which is too late for optimizers that derive values from their initial learning rate.

    Raises:
        ValueError: the optimizer's ``lr`` is not set.
    """
    if not (auto_scale_lr or {}).get("enable"):
        return optim_wrapper
    optimizer = optim_wrapper["optimizer"]
    if optimizer.get("lr") is None:
        raise ValueError("auto_scale_lr scales optim_wrapper.optimizer.lr, which is not set")
    ratio = global_batch_size / auto_scale_lr["base_batch_size"]
    return {**optim_wrapper, "optimizer": {**optimizer, "lr": optimizer["lr"] * ratio}}

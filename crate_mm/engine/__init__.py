"""The Runner, the training loop, optimization, logs, checkpoints and guards."""

from ..checkpoints import Checkpoint, CheckpointError, load_weights, newest_checkpoint, open_checkpoint, read_checkpoint
from ..config import CONFIGS, BatchPlan, find_config, load_config, plan_batch, resolve_config
from .checkpointing.hook import CheckpointHook
from .checkpointing.results import ResultFile
from .loop import TrainLoop
from .optim.gradient_norms import GradientNorms
from .optim.param_groups import DefaultOptimWrapperConstructor
from .optim.schedule import CosineWeightDecay, WarmupCosineLR
from .optim.wrapper import AutocastOptimWrapper, amp_dtype, amp_optim_wrapper
from .runner import Runner
from .safety import seeding, unreadable
from .safety.finite import RunStoppedError
from .safety.signals import RunInterruptedError

__all__ = [
    "CONFIGS", "CheckpointError", "RunInterruptedError", "RunStoppedError", "Runner", "amp_dtype", "find_config",
    "load_config", "open_checkpoint", "plan_batch", "read_checkpoint", "resolve_config",
]  # fmt: skip

from . import hooks  # noqa: F401  they register themselves
from .batch import BatchPlan, plan_batch
from .checkpoint import CheckpointError, load_weights, newest_checkpoint, read_checkpoint
from .config import CONFIGS, find_config, load_config, prepare
from .finite import RunStoppedError
from .logs import Visualizer
from .loops import TrainLoop
from .optim import AutocastOptimWrapper, amp_dtype, amp_optim_wrapper
from .results import ResultFile
from .runner import Runner
from .saving import CheckpointHook
from .schedule import WarmupCosineLR
from .signals import RunInterruptedError

__all__ = [
    "CONFIGS",
    "AutocastOptimWrapper",
    "BatchPlan",
    "CheckpointError",
    "CheckpointHook",
    "ResultFile",
    "RunInterruptedError",
    "RunStoppedError",
    "Runner",
    "TrainLoop",
    "Visualizer",
    "WarmupCosineLR",
    "amp_dtype",
    "amp_optim_wrapper",
    "find_config",
    "load_config",
    "load_weights",
    "newest_checkpoint",
    "plan_batch",
    "prepare",
    "read_checkpoint",
]

from .batch import BatchPlan, plan_batch
from .checkpoint import CheckpointError, load_weights, newest_checkpoint, read_checkpoint
from .config import CONFIGS, find_config, load_config, prepare
from .hooks import CheckpointHook, RunStoppedError
from .loops import TrainLoop
from .optim import AutocastOptimWrapper, amp_dtype, amp_optim_wrapper
from .results import ResultFile
from .runner import Runner
from .schedule import WarmupCosineLR

__all__ = [
    "CONFIGS",
    "AutocastOptimWrapper",
    "BatchPlan",
    "CheckpointError",
    "CheckpointHook",
    "ResultFile",
    "RunStoppedError",
    "Runner",
    "TrainLoop",
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

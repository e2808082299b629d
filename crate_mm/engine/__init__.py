from ..checkpoints import Checkpoint, CheckpointError, load_weights, newest_checkpoint, open_checkpoint, read_checkpoint
from ..config import CONFIGS, BatchPlan, find_config, load_config, plan_batch, prepare
from .gradient_norms import GradientNorms
from .groups import DefaultOptimWrapperConstructor
from .loop import TrainLoop
from .optim import AutocastOptimWrapper, amp_dtype, amp_optim_wrapper
from .results import ResultFile
from .runner import Runner
from .safety import seeding, unreadable
from .safety.finite import RunStoppedError
from .safety.signals import RunInterruptedError
from .saving import CheckpointHook
from .schedule import WarmupCosineLR

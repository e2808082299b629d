from .described import build_described, check_transforms, checked_model
from .files import (
    AtomicBackend,
    check_intact,
    newest_checkpoint,
    read_checkpoint,
    training_checkpoints,
    training_progress,
)
from .fit import Transfer, compare_weights, load_weights, same_kind
from .form import CheckpointError
from .open import Checkpoint, as_checkpoint, open_checkpoint

__all__ = [
    "AtomicBackend",
    "Checkpoint",
    "CheckpointError",
    "Transfer",
    "as_checkpoint",
    "build_described",
    "check_intact",
    "check_transforms",
    "checked_model",
    "compare_weights",
    "load_weights",
    "newest_checkpoint",
    "open_checkpoint",
    "read_checkpoint",
    "same_kind",
    "training_checkpoints",
    "training_progress",
]

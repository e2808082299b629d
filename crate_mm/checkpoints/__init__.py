"""Open, verify, translate, load and write checkpoints."""

from .described import build_from_checkpoint, check_transforms, validated_model_config
from .files import newest_checkpoint, training_checkpoints, training_progress
from .fit import TransferReport, check_state_dict, load_weights, same_dtype_kind
from .open import open_checkpoint, read_checkpoint
from .readers.pth import verify_checkpoint
from .unwrap import Checkpoint, as_checkpoint
from .validate import CheckpointError
from .write import write_checkpoint

__all__ = [
    "Checkpoint", "CheckpointError", "TransferReport", "as_checkpoint", "build_from_checkpoint", "load_weights",
    "newest_checkpoint", "open_checkpoint", "read_checkpoint", "write_checkpoint",
]  # fmt: skip

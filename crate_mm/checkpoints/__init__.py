from .described import build_described, check_transforms, checked_model
from .files import (
    check_intact,
    newest_checkpoint,
    read_checkpoint,
    training_checkpoints,
    training_progress,
)
from .fit import Transfer, compare_weights, load_weights, same_kind
from .form import CheckpointError
from .open import Checkpoint, as_checkpoint, open_checkpoint
from .write import write_checkpoint

from .described import build_described, check_transforms, checked_model
from .files import newest_checkpoint, training_checkpoints, training_progress
from .fit import Transfer, compare_weights, load_weights, same_kind
from .form import CheckpointError
from .open import open_checkpoint, read_checkpoint
from .pth import check_intact
from .unwrap import Checkpoint, as_checkpoint
from .write import write_checkpoint

from .described import build_described, check_transforms, checked_model
from .files import newest_checkpoint, training_checkpoints, training_progress
from .fit import Transfer, compare_weights, load_weights, same_kind
from .open import open_checkpoint, read_checkpoint
from .readers.pth import check_intact
from .unwrap import Checkpoint, as_checkpoint
from .validate import CheckpointError
from .write import write_checkpoint

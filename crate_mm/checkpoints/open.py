"""Open checkpoints: locate, read, validate, unwrap and translate the file."""

from pathlib import Path
from typing import Any

from .readers.npz import read_npz
from .readers.pth import read_pth
from .readers.safetensors import read_safetensors
from .remote import locate
from .unwrap import Checkpoint, as_checkpoint
from .validate import check_form

READERS = {".safetensors": read_safetensors, ".npz": read_npz}  # any other file is read as PyTorch's


def open_checkpoint(
    path: str | Path, map_location: str = "cpu", verified: bool = False, **model_args: Any
) -> Checkpoint:
    """Open a .pth, .safetensors or .npz file of crate_mm or of third-party code, without running code.

    The file is verified and unwrapped. Third-party parameter names are translated if a registered family declares them.
    The result's ``notes`` list these changes.

    Args:
        path: the file.
        map_location: device of the tensors.
        verified: skip the checksums, see ``read_checkpoint``.
        model_args: model arguments that a third-party file does not determine, such as ``num_heads``. The family
            of the file declares them. An argument of None counts as missing.

    Raises:
        CheckpointError: the file is missing, damaged, incomplete, refused or not a checkpoint, or its family does not
            accept one of ``model_args``.
    """
    return as_checkpoint(read_checkpoint(path, map_location, verified), path, **model_args)


def read_checkpoint(path: str | Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a PyTorch, safetensors or npz file; a pickle that would run code is refused.

    First, the memory and time that the file requests are compared with the file's size. The types of its metadata are
    checked (``validate``).

    Args:
        path: a path, an address or a name of published weights, see ``ensure_local``.
        map_location: device of the tensors.
        verified: skip the checksums because the file is known to be intact. Pickles are scanned for code in any case.

    Raises:
        CheckpointError: the file is missing, damaged, refused or not a checkpoint.
    """
    file = locate(path)
    contents = READERS.get(file.suffix, read_pth)(file, map_location, verified)
    check_form(contents, file)
    return contents

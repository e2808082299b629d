"""A checkpoint is opened in one line of steps: located, read, validated, unwrapped, translated."""

from pathlib import Path
from typing import Any

from .readers.npz import read_npz
from .readers.pth import read_pth
from .readers.safetensors import read_safetensors
from .remote import locate
from .unwrap import Checkpoint, as_checkpoint
from .validate import check_form

READERS = {".safetensors": read_safetensors, ".npz": read_npz}  # all other files are PyTorch's


def open_checkpoint(path: str | Path, map_location: str = "cpu", verified: bool = False, **given: Any) -> Checkpoint:
    """Open a .pth, .safetensors or .npz file of ours or of another code base, without running code.

    The file is verified, the wrappings that are in use are taken off, and the names of another code base that a
    registered family declares are translated. What was done is in the result's ``notes``.

    Args:
        path: the file.
        map_location: where the tensors go.
        verified: whether the file is known to be what was written, see ``read_checkpoint``.
        given: arguments of the model that another code base's file does not tell, such as ``num_heads``; the
            declaration of its family lists which. None is as not given.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, refused, not whole, or something is given that its
            family does not take.
    """
    return as_checkpoint(read_checkpoint(path, map_location, verified), path, **given)


def read_checkpoint(path: str | Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a checkpoint, a safetensors or an npz file; pickles that want to run code are refused.

    The file may be named by an address or by the name of published weights: see ``ensure_local``. What it asks for in
    memory and time is compared with its size first, and the form of what it says of itself is checked (``form``).

    Args:
        path: the file.
        map_location: where the tensors go.
        verified: whether the file is known to be what was written, so that its checksums are left out. Whether it would
            run code is looked at in any case.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or refused.
    """
    file = locate(path)
    contents = READERS.get(file.suffix, read_pth)(file, map_location, verified)
    check_form(contents, file)
    return contents

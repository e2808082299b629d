"""Weights in NumPy's ``.npz`` format, as JAX's code bases write them, read with NumPy alone."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ...io.untrusted import sanitized
from ..validate import CheckpointError

MOST_RATIO = 16  # of what the arrays take in memory to what the file has in bytes: weights compress little
MOST_ARRAYS = 100_000
KINDS = "biufc"  # NumPy's letters for truth values, whole, real and complex numbers


def read_npz(path: Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a file of arrays as a checkpoint, ``{'state_dict': {name: tensor}}``; nothing of it is run.

    What the arrays say that they take is compared with the file's size first.

    Args:
        path: the file.
        map_location: the device of the tensors.
        verified: without effect, as the archive's checksums are compared while it is read.

    Raises:
        CheckpointError: the file is damaged, or holds something else than arrays of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > MOST_ARRAYS or total > MOST_RATIO * path.stat().st_size:
                raise ValueError(f"its {len(entries):,} arrays take {total:,} bytes, far more than the file has")
            if len({entry.filename for entry in entries}) < len(entries):
                raise ValueError("two of its arrays have the same name")
            arrays = {e.filename.removesuffix(".npy"): _array(archive.read(e), e.filename) for e in entries}
        weights = {name: as_tensor(value).to(map_location) for name, value in arrays.items()}
    except (MemoryError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read now: {sanitized(error)}") from None
    except Exception as error:  # bytes that are no archive fail in many ways
        raise CheckpointError(f"{path} is damaged or no checkpoint: {sanitized(error)}") from None
    return {"state_dict": weights}


def _array(data: bytes, name: str) -> np.ndarray:
    """One entry's array, read as what its header says, which must be all of the entry."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its {sanitized(name)} has a header of version {version}, which is not read")
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, kind = header(stream)
    if kind.kind not in KINDS and kind != np.dtype("V2"):
        raise ValueError(f"its {sanitized(name)} holds {kind}, no numbers")
    rest = memoryview(data)[stream.tell() :]
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if min(shape, default=0) < 0 or count * kind.itemsize != len(rest):
        raise ValueError(f"its {sanitized(name)} is of another size than its header says")
    return np.frombuffer(rest, kind).reshape(shape, order="F" if by_columns else "C")


def as_tensor(array: np.ndarray) -> Tensor:
    """An array of numbers as a tensor of the same kind; JAX's bfloat16, which NumPy calls two bytes of anything, too.

    Raises:
        ValueError: PyTorch has no such numbers.
    """
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16).copy()).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise ValueError(f"it holds numbers of kind {array.dtype}, which PyTorch has not") from None

"""Read weights in NumPy's ``.npz`` format, which JAX code writes."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ...io.untrusted import sanitized
from ..validate import CheckpointError

MAX_RATIO = 16  # largest ratio of the arrays' size in memory to the file size; weights compress little
MAX_ARRAYS = 100_000
KINDS = "biufc"  # NumPy's codes for booleans, integers, floating-point and complex numbers


def read_npz(path: Path, map_location: str = "cpu", verified: bool = False) -> dict:
    """Read a file of arrays as a checkpoint, ``{'state_dict': {name: tensor}}``, without running code.

    First, the declared size of the arrays is compared with the file's size.

    Args:
        path: the file.
        map_location: device of the tensors.
        verified: no effect; the archive's checksums are verified while it is read.

    Raises:
        CheckpointError: the file is damaged, or holds anything other than numeric arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ARRAYS or total > MAX_RATIO * path.stat().st_size:
                raise ValueError(f"its {len(entries):,} arrays need {total:,} bytes, far more than the file's size")
            if len({entry.filename for entry in entries}) < len(entries):
                raise ValueError("two of its arrays have the same name")
            arrays = {e.filename.removesuffix(".npy"): _array(archive.read(e), e.filename) for e in entries}
        weights = {name: as_tensor(value).to(map_location) for name, value in arrays.items()}
    except (MemoryError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read now: {sanitized(error)}") from None
    except Exception as error:  # malformed bytes can raise anything
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {sanitized(error)}") from None
    return {"state_dict": weights}


def _array(data: bytes, name: str) -> np.ndarray:
    """Return the array of an entry; its header must describe the whole entry."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its {sanitized(name)} has a header of version {version}, which is not supported")
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = header(stream)
    if dtype.kind not in KINDS and dtype != np.dtype("V2"):
        raise ValueError(f"its {sanitized(name)} holds {dtype}, not numbers")
    rest = memoryview(data)[stream.tell() :]
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(rest):
        raise ValueError(f"the size of its {sanitized(name)} does not match its header")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if is_fortran else "C")


def as_tensor(array: np.ndarray) -> Tensor:
    """Convert a numeric array to a tensor of the same dtype; JAX's bfloat16 has the NumPy dtype ``V2``.

    Raises:
        ValueError: PyTorch has no such dtype.
    """
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16).copy()).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise ValueError(f"it has the dtype {array.dtype}, which PyTorch does not support") from None

"""Memory-mapped arrays in a file that the processes of a machine share. The file is checked and holds no pickles."""

import io
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..io.files import atomic_file
from ..io.untrusted import open_regular, sanitized

MAX_INDEX_BYTES = 2**36  # largest file; the index of 10^8 images has a tenth of this size
CHUNK = 2**24  # bytes per update of a checksum


class Column(NamedTuple):
    """An array that is written part by part: its dtype, length and parts."""

    dtype: np.dtype
    length: int
    parts: Iterable[np.ndarray]


class MappedArrays(Mapping):
    """Read-only, memory-mapped arrays of an uncompressed ``.npz`` file: name -> one-dimensional array of integers.

    All processes that map the file share its pages in memory. The system may drop pages and reread them. A spawned
    process (such as a loader's worker) maps the same file, or gets a copy of the arrays if the file has been replaced.

    Args:
        path: path of the file. The file must not be written or truncated while it is mapped. If it is truncated, the
            system kills a process that reads beyond its end.
        check: whether to read the whole file and verify its checksums.

    Raises:
        OSError: the file does not exist, is not a regular file, or is larger than ``MAX_INDEX_BYTES``.
        ValueError: the file is empty, compressed or damaged, or has an array that is not one-dimensional or not of
            integers. Exceptions that ``zipfile`` and ``struct`` raise for a damaged file propagate.
    """

    def __init__(self, path: str | Path, check: bool = True) -> None:
        self.path = os.path.abspath(path)
        self._memory, self._identity = _map(self.path)
        self._arrays = {}
        with zipfile.ZipFile(self._memory) as archive:
            for entry in archive.infolist():
                start, end = _place(self._memory, entry)
                if check:
                    self._verify_checksum(entry, start, end)
                self._arrays[entry.filename.removesuffix(".npy")] = _array(self._memory, start, end)

    def _verify_checksum(self, entry: zipfile.ZipInfo, start: int, end: int) -> None:
        checksum = 0
        for first in range(start, end, CHUNK):
            checksum = zlib.crc32(self._memory[first : min(first + CHUNK, end)], checksum)
            self.release_pages()
        if checksum != entry.CRC:
            raise ValueError(f"the checksum of {sanitized(entry.filename)} does not match")

    def release_pages(self) -> None:
        """Release the pages that were read, so that they do not count as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self):
        try:
            unchanged = _identity(os.stat(self.path)) == self._identity
        except OSError:
            unchanged = False
        if unchanged:
            return _map_again, (self.path, self._identity)
        return dict, ({name: np.array(array) for name, array in self.items()},)


def _map_again(path: str, identity: tuple[int, ...]) -> MappedArrays:
    arrays = MappedArrays(path, check=False)
    if arrays._identity != identity:
        raise ValueError(
            f"{sanitized(path)} was replaced while a process that needs it was starting: start the run again"
        )
    return arrays


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _map(path: str) -> tuple[mmap.mmap, tuple[int, ...]]:
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size > MAX_INDEX_BYTES:
            raise OSError(f"{sanitized(path)} has {status.st_size:,} bytes, more than the {MAX_INDEX_BYTES:,} allowed")
        if status.st_size == 0:
            raise ValueError("it is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), _identity(status)


def _place(memory: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the start and the end of an entry's content."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError("it is compressed")
    offset = entry.header_offset
    if not 0 <= offset <= len(memory) - 30 or memory[offset : offset + 4] != b"PK\x03\x04":
        raise ValueError("an entry is missing")
    name_length, extra_length = struct.unpack("<HH", memory[offset + 26 : offset + 30])
    start = offset + 30 + name_length + extra_length
    if start + entry.file_size > len(memory):
        raise ValueError("an entry is truncated")
    return start, start + entry.file_size


def _array(memory: mmap.mmap, start: int, end: int) -> np.ndarray:
    file = io.BytesIO(memory[start : min(end, start + 2**14)])
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array has the unsupported version {version}")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read_header(file)
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError("its columns are not one-dimensional arrays of integers")
    first = start + file.tell()
    if first + shape[0] * dtype.itemsize != end:
        raise ValueError("an array's length does not match its entry")
    return np.frombuffer(memory, dtype, shape[0], first) if shape[0] else np.empty(0, dtype)


def save_arrays(path: str | Path, columns: dict[str, np.ndarray | Column]) -> None:
    """Write one-dimensional arrays atomically as an ``.npz`` file for ``MappedArrays``.

    The bytes of the file depend only on the arrays. NumPy's ``savez`` does not guarantee this.
    """
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, column in columns.items():
            if not isinstance(column, Column):
                column = Column(column.dtype, len(column), [column])
            header = {"descr": column.dtype.str, "fortran_order": False, "shape": (column.length,)}
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)
                written = 0
                for part in column.parts:
                    entry.write(np.ascontiguousarray(part, column.dtype).view(np.uint8).data)
                    written += len(part)
                assert written == column.length, (name, written, column.length)


def smallest_dtype(lowest: int, highest: int) -> np.dtype:
    """Return the smallest integer dtype that can hold both values."""
    return np.result_type(np.min_scalar_type(int(lowest)), np.min_scalar_type(int(highest)))


def text_array(text: str | bytes) -> np.ndarray:
    """Return text, or its bytes, as a uint8 array."""
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

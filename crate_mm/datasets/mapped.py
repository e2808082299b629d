"""Arrays in a file that all processes of a machine share: mapped, checked, and never a pickle."""

import io
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..io.files import atomic_file
from ..io.untrusted import sanitized

MAX_INDEX_BYTES = 2**36  # of a file of arrays: 10^8 images have a tenth of it
CHUNK = 2**24  # bytes that are looked at in one go


class Column(NamedTuple):
    """An array that is written without being in memory: its type, its length and its parts."""

    dtype: np.dtype
    length: int
    parts: Iterable[np.ndarray]


class MappedArrays(Mapping):
    """The arrays of an uncompressed ``.npz`` file, read-only and mapped: name -> one-dimensional array of integers.

    The file's pages lie in memory once, however many processes map it, and the system may drop them and read them
    again. A process that is not forked off (a loader's worker by spawn) maps the same file. Where another file has its
    place meanwhile, that process gets a copy of the arrays.

    Args:
        path: of the file. Nobody may write into it or cut it off while it is mapped: the system would end the process.
        check: whether all of it is read, to compare it with the checksums that it has.

    Raises:
        OSError: there is no such file, or it is no regular one.
        ValueError: it is compressed, damaged, or has other arrays than these. (Exceptions of ``zipfile`` and ``struct``
            come as they are.)
    """

    def __init__(self, path: str | Path, check: bool = True) -> None:
        self.path = os.path.abspath(path)
        self._memory, self._identity = _map(self.path)
        self._arrays = {}
        with zipfile.ZipFile(self._memory) as archive:
            for entry in archive.infolist():
                start, end = _place(self._memory, entry)
                if check:
                    self._check_sum(entry, start, end)
                self._arrays[entry.filename.removesuffix(".npy")] = _array(self._memory, start, end)

    def _check_sum(self, entry: zipfile.ZipInfo, start: int, end: int) -> None:
        checksum = 0
        for first in range(start, end, CHUNK):
            checksum = zlib.crc32(self._memory[first : min(first + CHUNK, end)], checksum)
            self.release_pages()
        if checksum != entry.CRC:
            raise ValueError(f"its checksum of {sanitized(entry.filename)} is another")

    def release_pages(self) -> None:
        """Tell the system that what was read is not needed now: it counts as this process's memory no longer."""
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
            there = _identity(os.stat(self.path)) == self._identity
        except OSError:
            there = False
        if there:
            return _map_again, (self.path, self._identity)
        return dict, ({name: np.array(array) for name, array in self.items()},)


def _map_again(path: str, identity: tuple[int, ...]) -> MappedArrays:
    arrays = MappedArrays(path, check=False)
    if arrays._identity != identity:
        raise ValueError(
            f"{sanitized(path)} has been replaced while a process began that needs it: start the run again"
        )
    return arrays


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _map(path: str) -> tuple[mmap.mmap, tuple[int, ...]]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{sanitized(path)} is no regular file")
        if status.st_size > MAX_INDEX_BYTES:
            raise OSError(
                f"{sanitized(path)} has {status.st_size:,} bytes, more than the {MAX_INDEX_BYTES:,} that are read"
            )
        if status.st_size == 0:
            raise ValueError("it is empty")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), _identity(status)
    finally:
        os.close(descriptor)


def _place(memory: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where an entry's content begins and ends."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError("it is compressed")
    at = entry.header_offset
    if not 0 <= at <= len(memory) - 30 or memory[at : at + 4] != b"PK\x03\x04":
        raise ValueError("it has an entry that is not there")
    start = at + 30 + sum(struct.unpack("<HH", memory[at + 26 : at + 30]))  # behind the name and what follows it
    if start + entry.file_size > len(memory):
        raise ValueError("it has an entry that is cut off")
    return start, start + entry.file_size


def _array(memory: mmap.mmap, start: int, end: int) -> np.ndarray:
    file = io.BytesIO(memory[start : min(end, start + 2**14)])
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has an array of the version {version}")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read_header(file)
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError("its columns are not rows of whole numbers")
    first = start + file.tell()
    if first + shape[0] * dtype.itemsize != end:
        raise ValueError("it has an array of another length than its own")
    return np.frombuffer(memory, dtype, shape[0], first) if shape[0] else np.empty(0, dtype)


def save_arrays(path: str | Path, columns: dict[str, np.ndarray | Column]) -> None:
    """Write one-dimensional arrays as an ``.npz`` file for ``MappedArrays``, whole or not at all.

    The same arrays make the same bytes, whenever they are written, which NumPy's ``savez`` does not promise.
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
    """The smallest type of whole numbers that has both."""
    return np.result_type(np.min_scalar_type(int(lowest)), np.min_scalar_type(int(highest)))


def text_array(text: str | bytes) -> np.ndarray:
    """Text, or the bytes of it, as an array."""
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

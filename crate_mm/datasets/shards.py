"""Format and writer of packed images: WebDataset shards, the rows that describe their samples, and an index.

A shard is a tar file with two members per sample, ``<key>.<jpg, png, ...>`` and ``<key>.cls`` (the label as decimal
digits), as read by the webdataset library. The rows of a shard are arrays: the columns ``offset``, ``size``, ``label``,
``name_ends`` and ``names`` (see ``COLUMNS``), and ``about``, JSON with the shard's ``bytes`` and ``crc32``. The index,
``index.npz`` next to the shards, has the rows of all shards and the column ``shard``, each image's shard number.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from ..io.files import atomic_file
from ..io.untrusted import check_plain, read_json
from .mapped import CHUNK, Column, MappedArrays, save_arrays, smallest_dtype, text_array

INDEX = "index.npz"
# One row per image; ``names`` has the bytes of all names.
COLUMNS = ("shard", "offset", "size", "label", "name_ends", "names")
# From this number of images on, columns have the smallest dtype. Smaller indexes use int64, which cannot overflow.
NARROW = 2**20

Rows = Mapping[str, np.ndarray]


class _ChecksumWriter:
    """File wrapper that computes the checksum of the written data."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.crc32, self.tell = file, 0, file.tell

    def write(self, data: bytes) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return self.file.write(data)


def write_shard(
    path: Path, samples: Iterable[tuple[int, str, bytes, int]], max_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Write samples ``(key, name, encoded image, label)`` atomically as a shard, and return its rows.

    Args:
        max_bytes: stop after the sample that makes the shard this large; the iterator keeps the remaining samples.
    """
    rows, names = [], []
    with atomic_file(path) as file:
        writer = _ChecksumWriter(file)
        with tarfile.open(fileobj=writer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, name, data, label in samples:
                _add(tar, f"{key:09d}.cls", str(label).encode())
                _add(tar, f"{key:09d}{Path(name).suffix.lower().replace('.jpeg', '.jpg')}", data)
                rows.append((tar.offset - _padded(len(data)), len(data), label))
                names.append(name.encode("utf-8", "backslashreplace"))  # names may have undecodable bytes
                if max_bytes is not None and tar.offset >= max_bytes:
                    break
        about = {"bytes": writer.tell(), "crc32": writer.crc32}
    offset, size, label = np.array(rows, np.int64).reshape(-1, 3).T
    return {
        "offset": offset,
        "size": size,
        "label": label,
        "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "names": text_array(b"".join(names)),
        "about": text_array(json.dumps(about)),
    }


def about_shard(rows: Rows) -> dict:
    """Return the metadata of a shard, from its rows.

    Raises:
        ValueError: the metadata are malformed.
    """
    about = read_json(rows["about"].tobytes())
    check_plain(about)
    if not isinstance(about, dict) or not all(isinstance(about.get(key), int) for key in ("bytes", "crc32")):
        raise ValueError("the size or the checksum of its shard is missing")
    return about


def is_intact(shard: Path, rows: Path) -> bool:
    """Return whether a shard matches the checksum in its rows file; reads the whole shard."""
    try:
        about, crc32 = about_shard(MappedArrays(rows)), 0
        if shard.is_symlink() or shard.stat().st_size != about["bytes"]:
            return False
        with open(shard, "rb") as file:
            while data := file.read(CHUNK):
                crc32 = zlib.crc32(data, crc32)
        return crc32 == about["crc32"]
    except Exception:  # missing or malformed; NumPy and zipfile raise exceptions of any type
        return False


def write_index(folder: Path, shards: list[tuple[str, Path | Rows]], classes: list[str]) -> int:
    """Write the index of shards, given as pairs (name, rows or rows file); return the number of images.

    Only one shard's rows are in memory at a time. Shards without images are omitted.
    """

    def rows(number: int, check: bool = False) -> Rows:
        rows_or_file = shards[number][1]
        return MappedArrays(rows_or_file, check) if isinstance(rows_or_file, Path) else rows_or_file

    about, numbers, lengths, name_bytes, largest = {"shards": [], "bytes": [], "classes": classes}, [], [], [], {}
    for number, (name, _) in enumerate(shards):
        columns = rows(number, check=True)
        if len(columns["size"]):
            numbers.append(number)
            about["shards"].append(name)
            about["bytes"].append(about_shard(columns)["bytes"])
            lengths.append(len(columns["size"]))
            name_bytes.append(len(columns["names"]))
            for key in ("offset", "size", "label"):
                largest[key] = max(largest.get(key, 0), int(columns[key].max()))
    starts = np.cumsum([0, *name_bytes])
    largest |= {"shard": len(numbers), "name_ends": starts[-1]}

    def column(key: str) -> Iterator[np.ndarray]:
        for position, number in enumerate(numbers):
            if key == "shard":
                yield np.full(lengths[position], position)
            else:
                yield rows(number)[key] + starts[position] if key == "name_ends" else rows(number)[key]

    count, columns = sum(lengths), {}
    for key in COLUMNS[:-1]:
        dtype = smallest_dtype(0, largest.get(key, 0)) if count >= NARROW else np.dtype(np.int64)
        columns[key] = Column(dtype, count, column(key))
    columns["names"] = Column(np.dtype(np.uint8), int(starts[-1]), column("names"))
    save_arrays(folder / INDEX, {**columns, "about": text_array(json.dumps(about))})
    return count


def write_shards(
    folder: Path, samples: Iterable[tuple[str, bytes, int]], classes: list[str], shard_bytes: int = 1_000_000_000
) -> int:
    """Write samples ``(name, encoded image, label)`` as shards and their index; return the number of samples.

    The index is written last: a folder without an index is incomplete.
    """
    remaining, shards = ((key, *sample) for key, sample in enumerate(samples)), []
    while (first := next(remaining, None)) is not None:
        name = shard_name(len(shards))
        shards.append((name, write_shard(folder / name, chain([first], remaining), shard_bytes)))
    return write_index(folder, shards, classes)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

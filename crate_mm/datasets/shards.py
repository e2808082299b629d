"""The form of packed images, and its writing: WebDataset shards, rows that say what is in each, and their index.

A shard is a tar file with two members a sample, ``<key>.<jpg, png, ...>`` and ``<key>.cls`` (the label in digits), as
the webdataset library and its kin stream them. A shard's rows are the columns ``offset``, ``size``, ``label``,
``name_ends`` and ``names`` (see ``COLUMNS``) and ``about``, JSON with the shard's ``bytes`` and ``crc32``. The index,
``index.npz`` beside the shards, has those of all shards, and ``shard``, which is the number of an image's shard.
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
COLUMNS = ("shard", "offset", "size", "label", "name_ends", "names")  # a row an image; the last has all names' bytes
# From so many images on, numbers have as few bits as they need; below, as many as others can reckon with unharmed.
NARROW = 2**20

Rows = Mapping[str, np.ndarray]


class _Summed:
    """A file that is written to, with the checksum of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.crc32, self.tell = file, 0, file.tell

    def write(self, data: bytes) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return self.file.write(data)


def write_shard(
    path: Path, samples: Iterable[tuple[int, str, bytes, int]], most_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Write samples ``(key, name, encoded image, label)`` as a shard, whole or not at all, and return its rows.

    Args:
        most_bytes: the sample with which the shard has that many is its last; the others are left in the iterator.
    """
    rows, names = [], []
    with atomic_file(path) as file:
        summed = _Summed(file)
        with tarfile.open(fileobj=summed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, name, data, label in samples:
                _add(tar, f"{key:09d}.cls", str(label).encode())
                _add(tar, f"{key:09d}{Path(name).suffix.lower().replace('.jpeg', '.jpg')}", data)
                rows.append((tar.offset - _padded(len(data)), len(data), label))
                names.append(name.encode("utf-8", "backslashreplace"))  # a file's name need not be text
                if most_bytes is not None and tar.offset >= most_bytes:
                    break
        about = {"bytes": summed.tell(), "crc32": summed.crc32}
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
    """What a shard's rows say of the shard.

    Raises:
        ValueError: it is not what was written.
    """
    about = read_json(rows["about"].tobytes())
    check_plain(about)
    if not isinstance(about, dict) or not all(isinstance(about.get(key), int) for key in ("bytes", "crc32")):
        raise ValueError("it does not say how many bytes its shard has, and their checksum")
    return about


def is_whole(shard: Path, rows: Path) -> bool:
    """Whether a shard is what its rows, a file, say: all of it is read."""
    try:
        about, found = about_shard(MappedArrays(rows)), 0
        if shard.is_symlink() or shard.stat().st_size != about["bytes"]:
            return False
        with open(shard, "rb") as file:
            while data := file.read(CHUNK):
                found = zlib.crc32(data, found)
        return found == about["crc32"]
    except Exception:  # it is not there, or whatever NumPy and zipfile make of a file that is none
        return False


def write_index(folder: Path, shards: list[tuple[str, Path | Rows]], classes: list[str]) -> int:
    """Write the index of shards, each given by its name and its rows (or their file); return the number of images.

    The rows of one shard are in memory at a time. Shards without images are left out.
    """

    def rows(number: int, check: bool = False) -> Rows:
        given = shards[number][1]
        return MappedArrays(given, check) if isinstance(given, Path) else given

    about, numbers, lengths, texts, most = {"shards": [], "bytes": [], "classes": classes}, [], [], [], {}
    for number, (name, _) in enumerate(shards):
        columns = rows(number, check=True)
        if len(columns["size"]):
            numbers.append(number)
            about["shards"].append(name)
            about["bytes"].append(about_shard(columns)["bytes"])
            lengths.append(len(columns["size"]))
            texts.append(len(columns["names"]))
            for key in ("offset", "size", "label"):
                most[key] = max(most.get(key, 0), int(columns[key].max()))
    starts = np.cumsum([0, *texts])
    most |= {"shard": len(numbers), "name_ends": starts[-1]}

    def column(key: str) -> Iterator[np.ndarray]:
        for position, number in enumerate(numbers):
            if key == "shard":
                yield np.full(lengths[position], position)
            else:
                yield rows(number)[key] + starts[position] if key == "name_ends" else rows(number)[key]

    count, columns = sum(lengths), {}
    for key in COLUMNS[:-1]:
        dtype = smallest_dtype(0, most.get(key, 0)) if count >= NARROW else np.dtype(np.int64)
        columns[key] = Column(dtype, count, column(key))
    columns["names"] = Column(np.dtype(np.uint8), int(starts[-1]), column("names"))
    save_arrays(folder / INDEX, {**columns, "about": text_array(json.dumps(about))})
    return count


def write_shards(
    folder: Path, samples: Iterable[tuple[str, bytes, int]], classes: list[str], shard_bytes: int = 1_000_000_000
) -> int:
    """Write samples ``(name, encoded image, label)`` as shards and their index, and return how many there were.

    The index is written last: a folder without one is not whole.
    """
    left, shards = ((key, *sample) for key, sample in enumerate(samples)), []
    while (first := next(left, None)) is not None:
        name = shard_name(len(shards))
        shards.append((name, write_shard(folder / name, chain([first], left), shard_bytes)))
    return write_index(folder, shards, classes)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

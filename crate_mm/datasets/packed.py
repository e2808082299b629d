"""Images in a few large files, for network disks and millions of images: WebDataset shards with an index.

A shard is a tar file with two members a sample, ``<key>.<jpg, png, ...>`` and ``<key>.cls`` (the label in digits), as
the webdataset library and its kin stream them. ``index.npz`` beside the shards says where each image lies, which makes
random access, and with it a true shuffle, one read.
"""

import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import home
from ..registry import DATASETS
from ..untrusted import check_plain, read_json, read_regular, shown
from .images import MOST_BYTES, open_image
from .names import readable_names

INDEX = "index.npz"
MOST_INDEX_BYTES = 2**32  # a hundred bytes an image
MOST_OPEN = 64  # shards a process has open: a terabyte is a thousand of them, and many systems allow a thousand files


@DATASETS.register_module()
class PackedImages:
    """The images of ``root/<split>``, packed by ``tools/pack_dataset.py``, as pairs (PIL image, label).

    Args:
        root: the folder that holds the split folders.
        split: 'train' or 'val'.

    Raises:
        ValueError: there is no such folder or index, or a shard is missing or of another size than when it was packed.
    """

    def __init__(self, root: str | None, split: str = "train") -> None:
        if root is None:
            raise ValueError("data_root is not set: give the folder that tools/pack_dataset.py has written")
        folder = Path(home(root)) / split
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder / INDEX} does not exist: tools/pack_dataset.py writes it, beside the shards")
        try:
            self._read_index(folder)
        except Exception as error:  # whatever NumPy and zipfile make of a file that is none
            reason = shown(str(error) or type(error).__name__)
            raise ValueError(f"{folder / INDEX} is damaged ({reason}): pack the images again") from None
        for file, size in zip(self.files, self._sizes):
            found = file.stat().st_size if file.is_file() else "no"
            if found != size:
                raise ValueError(f"shard {file} should have {size} bytes, it has {found}: copy or pack it again")
        # Shard -> file descriptor, the one used last at the end. Reading moves no position, so workers may share them.
        self._open: dict[int, int] = {}

    def _read_index(self, folder: Path) -> None:
        """Read the index; raise an exception of some kind unless all that is in it can be what was packed."""
        data = read_regular(folder / INDEX, MOST_INDEX_BYTES)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as index:
            columns = {name: index[name] for name in ("shard", "offset", "size", "label", "name_ends")}
            self._names = index["names"]
            about = read_json(index["about"].tobytes())
        if any(column.ndim != 1 or column.dtype.kind not in "iu" for column in columns.values()):
            raise ValueError("its columns are not rows of whole numbers")
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError("its columns are of different lengths")
        if any(column.dtype.kind == "u" and (column >= 2**63).any() for column in columns.values()):
            raise ValueError("it has numbers that are too large")
        columns = {name: column.astype(np.int64) for name, column in columns.items()}
        self.shard, self.offset, self.size, self.labels, self._ends = columns.values()
        check_plain(about)
        names, shards, sizes = about["classes"], about["shards"], about["bytes"]
        if not all(isinstance(value, list) for value in (names, shards, sizes)) or len(shards) != len(sizes):
            raise ValueError("its lists of classes and shards are not what was packed")
        for name in shards:
            if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
                raise ValueError(f"its shard {name!r} is no file's name in the folder")
        if not all(isinstance(size, int) and 0 <= size < 2**62 for size in sizes):
            raise ValueError("its shards have sizes that are none")
        self.classes = readable_names([str(name) for name in names])
        self.files = [folder / name for name in shards]
        self._sizes = np.array(sizes, np.int64).reshape(-1)
        for column, end in ((self.shard, len(sizes)), (self.labels, len(names))):
            if (column < 0).any() or (column >= end).any():
                raise ValueError(f"it has rows with a number outside 0 to {end - 1}")
        # Not offset + size, which may be beyond the largest number.
        if (self.offset < 0).any() or (self.size < 0).any():
            raise ValueError("it has images that lie outside their shard")
        if (self.size > self._sizes[self.shard] - self.offset).any():
            raise ValueError("it has images that lie outside their shard")
        if (self.size > MOST_BYTES).any():
            raise ValueError(f"it has images of more than {MOST_BYTES:,} bytes")
        if self._names.dtype != np.uint8 or self._names.ndim != 1:
            raise ValueError("its names are no text")
        ends = np.concatenate([[0], self._ends])
        if (np.diff(ends) < 0).any() or ends[-1] != len(self._names):
            raise ValueError("its names do not end where they should")
        starts = self._names[self._ends[self._ends < len(self._names)]]
        if ((starts & 0xC0) == 0x80).any():
            raise ValueError("its names end within a character")
        self._names.tobytes().decode()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""
        shard = int(self.shard[index])
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(self.files[shard], os.O_RDONLY)
        self._open[shard] = descriptor
        size = int(self.size[index])
        data = os.pread(descriptor, size, int(self.offset[index]))
        if len(data) != size:
            raise OSError(f"{self.files[shard]} ends within {self.path(index)}")
        return data, int(self.labels[index])

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        data, label = self.read(index)
        return open_image(data), label

    def path(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].tobytes().decode()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def write_shards(
    folder: Path, samples: Iterable[tuple[str, bytes, int]], classes: list[str], shard_bytes: int = 1_000_000_000
) -> int:
    """Write samples ``(name, encoded image, label)`` as shards and their index, and return how many there were.

    The index is written last: a folder without one is not whole.
    """
    rows: list[tuple[int, int, int, int]] = []
    names, shards, sizes = [], [], []
    tar = None
    for number, (name, data, label) in enumerate(samples):
        if tar is None or tar.offset >= shard_bytes:
            _close(tar, sizes, folder, shards)
            shards.append(f"shard-{len(shards):06d}.tar")
            tar = tarfile.open(folder / shards[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        key = f"{number:09d}"
        _add(tar, f"{key}.cls", str(label).encode())
        member = _add(tar, f"{key}{Path(name).suffix.lower().replace('.jpeg', '.jpg')}", data)
        rows.append((len(shards) - 1, tar.offset - _padded(member.size), member.size, label))
        names.append(name.encode("utf-8", "backslashreplace"))  # a file's name need not be text
    _close(tar, sizes, folder, shards)
    shard, offset, size, label = np.array(rows, np.int64).reshape(-1, 4).T
    about = {"shards": shards, "bytes": sizes, "classes": classes}
    np.savez(
        folder / INDEX,
        shard=shard.astype(np.int32),
        offset=offset,
        size=size,
        label=label,
        names=np.frombuffer(b"".join(names), np.uint8),
        name_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
    )
    return len(rows)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    return member


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _close(tar: tarfile.TarFile | None, sizes: list[int], folder: Path, shards: list[str]) -> None:
    if tar is not None:
        tar.close()
        sizes.append((folder / shards[-1]).stat().st_size)

"""Images in a few large files, for network disks and millions of images: WebDataset shards with an index.

A shard is a tar file with two members a sample, ``<key>.<jpg, png, ...>`` and ``<key>.cls`` (the label in digits), as
the webdataset library and its kin stream them. ``index.npz`` beside the shards says where each image lies, which makes
random access, and with it a true shuffle, one read.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..registry import DATASETS
from .folders import readable_names
from .images import convert

INDEX = "index.npz"


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
        folder = Path(root) / split
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder / INDEX} does not exist: tools/pack_dataset.py writes it, beside the shards")
        try:
            with np.load(folder / INDEX, allow_pickle=False) as index:
                self.shard, self.offset, self.size = index["shard"], index["offset"], index["size"]
                self.labels, self._names, self._ends = index["label"], index["names"], index["name_ends"]
                about = json.loads(index["about"].tobytes())
            self.classes = readable_names([str(name) for name in about["classes"]])
            self.files = [folder / name for name in about["shards"]]
            sizes = np.array(about["bytes"], np.int64)
            self._check_rows(sizes)
        except Exception as error:  # whatever NumPy and zipfile make of a file that is none
            reason = str(error) or type(error).__name__
            raise ValueError(f"{folder / INDEX} is damaged ({reason}): pack the images again") from None
        for file, size in zip(self.files, sizes):
            found = file.stat().st_size if file.is_file() else "no"
            if found != size:
                raise ValueError(f"shard {file} should have {size} bytes, it has {found}: copy or pack it again")
        self._open: dict[int, int] = {}  # shard -> file descriptor; reading moves no position, so workers may share it

    def _check_rows(self, sizes: np.ndarray) -> None:
        """Raise ``ValueError`` for a row that lies outside its shard, or whose label is no class."""
        columns = (self.shard, self.offset, self.size, self.labels, self._ends)
        if len({column.shape for column in columns}) > 1 or self.labels.ndim != 1 or len(sizes) != len(self.files):
            raise ValueError("its columns are of different lengths")
        for column, end in ((self.shard, len(sizes)), (self.labels, len(self.classes))):
            if (column < 0).any() or (column >= end).any():
                raise ValueError(f"it has rows with a number outside 0 to {end - 1}")
        if (self.offset < 0).any() or (self.size < 0).any() or (self.offset + self.size > sizes[self.shard]).any():
            raise ValueError("it has images that lie outside their shard")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""
        shard = int(self.shard[index])
        if shard not in self._open:
            self._open[shard] = os.open(self.files[shard], os.O_RDONLY)
        size = int(self.size[index])
        data = os.pread(self._open[shard], size, int(self.offset[index]))
        if len(data) != size:
            raise OSError(f"{self.files[shard]} ends within {self.path(index)}")
        return data, int(self.labels[index])

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        data, label = self.read(index)
        with Image.open(io.BytesIO(data)) as image:
            return convert(image), label

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
        names.append(name.encode())
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

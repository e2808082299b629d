"""Images in a few large files, for network disks and millions of images: shards and an index (see ``shards``).

The index stores each image's location, so that random access, and thus a full shuffle, takes one read per image.
"""

import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from ..io.untrusted import check_plain, read_json, sanitized
from ..registry import DATASETS
from .base import Source, data_folder
from .images import MAX_IMAGE_BYTES, open_image
from .mapped import MappedArrays
from .names import readable_names
from .shards import COLUMNS, INDEX, write_shards  # noqa: F401  write_shards: re-exported for scripts

ROWS = 2**18  # rows that are checked at a time
MAX_OPEN_SHARDS = 64  # a terabyte has a thousand shards, and many systems allow a thousand open files


@DATASETS.register_module()
class PackedImages(Source):
    """The images of ``root/<split>``, packed by ``tools/pack_dataset.py``, as pairs (PIL image, label).

    The index is memory-mapped and shared by the processes of a machine and their workers. It must not be modified while
    it is in use.

    Args:
        root: the folder that holds the split folders.
        split: 'train' or 'val'.

    Raises:
        ValueError: the folder or the index does not exist, the index is damaged, or a shard is missing or does not have
            the size that the index states.
    """

    encoded = True

    def __init__(self, root: str | None, split: str = "train") -> None:
        # Shard -> file descriptor, the most recently used last. Workers may share descriptors, because os.pread does
        # not move the file position.
        self._open: dict[int, int] = {}
        folder = Path(data_folder(root, "the folder that tools/pack_dataset.py wrote")) / split
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder / INDEX} does not exist: tools/pack_dataset.py writes it, next to the shards")
        try:
            self._index = MappedArrays(folder / INDEX)
            self._set_columns()
            self._check_index(folder)
        except Exception as error:  # NumPy and zipfile raise exceptions of any type for malformed files
            reason = sanitized(str(error) or type(error).__name__)
            raise ValueError(f"{folder / INDEX} is damaged ({reason}): pack the images again") from None
        for file, size in zip(self.files, self._sizes.tolist()):
            actual = f"{file.stat().st_size} bytes" if file.is_file() else "no such file"
            if actual != f"{size} bytes":
                raise ValueError(f"shard {file} must have {size} bytes, got {actual}: copy or pack it again")

    def _set_columns(self) -> None:
        columns = (self._index[name] for name in COLUMNS)
        self.shard, self.offset, self.size, self.labels, self._ends, self._names = columns

    def _check_index(self, folder: Path) -> None:
        """Raise an exception of any type unless the whole index is valid."""
        about = read_json(self._index["about"].tobytes())
        if len({len(self._index[name]) for name in COLUMNS if name != "names"}) > 1:
            raise ValueError("its columns are of different lengths")
        check_plain(about)
        names, shards, sizes = about["classes"], about["shards"], about["bytes"]
        if not all(isinstance(value, list) for value in (names, shards, sizes)) or len(shards) != len(sizes):
            raise ValueError("its lists of classes and shards are not valid")
        for name in shards:
            if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
                raise ValueError(f"its shard {name!r} is not a file name")
        if not all(isinstance(size, int) and 0 <= size < 2**62 for size in sizes):
            raise ValueError("its shard sizes are not valid")
        self.classes = readable_names([str(name) for name in names])
        self.files = [folder / name for name in shards]
        self._sizes = np.array(sizes, np.int64).reshape(-1)
        if self._names.dtype != np.uint8:
            raise ValueError("its names are not text")
        end = 0
        for first in range(0, len(self), ROWS):
            end = self._check_rows(slice(first, first + ROWS), end)
            self._index.release_pages()
        if end != len(self._names):
            raise ValueError("the ends of its names are not valid")

    def _check_rows(self, rows: slice, begin: int) -> int:
        """Check some rows of the index. Their names begin at ``begin``; return where their names end."""
        columns = [column[rows] for column in (self.shard, self.offset, self.size, self.labels, self._ends)]
        if any(column.dtype.kind == "u" and (column >= 2**63).any() for column in columns):
            raise ValueError("its numbers are too large")
        shard, offset, size, label, ends = (column.astype(np.int64) for column in columns)
        for column, end in ((shard, len(self.files)), (label, len(self.classes))):
            if (column < 0).any() or (column >= end).any():
                raise ValueError(f"its rows have numbers outside 0 to {end - 1}")
        # offset + size could overflow.
        if (offset < 0).any() or (size < 0).any() or (size > self._sizes[shard] - offset).any():
            raise ValueError("it has images outside their shard")
        if (size > MAX_IMAGE_BYTES).any():
            raise ValueError(f"it has images of more than {MAX_IMAGE_BYTES:,} bytes")
        ends = np.concatenate([[begin], ends])
        if (np.diff(ends) < 0).any() or ends[-1] > len(self._names):
            raise ValueError("the ends of its names are not valid")
        text = self._names[begin : ends[-1]]
        starts = text[ends[:-1][ends[:-1] < ends[-1]] - begin]
        if ((starts & 0xC0) == 0x80).any():
            raise ValueError("a name ends within a character")
        text.tobytes().decode()
        return int(ends[-1])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> np.ndarray:
        return self.labels

    def read(self, index: int) -> tuple[bytes, int]:
        shard, offset, size, label = (int(c[index]) for c in (self.shard, self.offset, self.size, self.labels))
        if not (
            0 <= shard < len(self.files) and 0 <= size <= MAX_IMAGE_BYTES and 0 <= offset <= self._sizes[shard] - size
        ):
            raise OSError(f"the index next to {self.files[0]} was rewritten while it was in use")
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            if len(self._open) >= MAX_OPEN_SHARDS:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(self.files[shard], os.O_RDONLY)
        self._open[shard] = descriptor
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise OSError(f"{self.files[shard]} ends within {self.path(index)}")
        return data, label

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        data, label = self.read(index)
        return open_image(data), label

    def path(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].tobytes().decode()

    def __getstate__(self) -> dict:
        columns = ("shard", "offset", "size", "labels", "_ends", "_names")
        return {**{name: value for name, value in self.__dict__.items() if name not in columns}, "_open": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._set_columns()

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

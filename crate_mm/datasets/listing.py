"""The files of a tree in compact arrays: a few dozen bytes per file, shared between processes."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from .mapped import smallest_dtype

BLOCK = 4096  # files whose names are decoded together
FolderFiles = tuple[str, int, list[str]]  # a folder, the label of its files, and their names


class TooManyFilesError(Exception):
    """There are more files than allowed."""


class _Compared(Sequence):
    """Sequence that equals any other sequence of equal items."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))


class Listing(_Compared):
    """Read-only sequence of (path, label); a list would take 177 bytes per file and process.

    Args:
        root: the folder that the paths begin with.
        columns: output of ``build_columns``, in memory or mapped (``MappedArrays``).
        order: the files of this listing, in order, as indices into the columns (default: all files).
    """

    def __init__(self, root: str, columns: Mapping[str, np.ndarray], order: np.ndarray | None = None) -> None:
        self.root, self.columns, self.order = root, columns, order

    def __len__(self) -> int:
        return len(self.columns["ends"] if self.order is None else self.order)

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1 and self.order is None:
                return list(self._items(start, stop))
            return [self[i] for i in range(start, stop, step)]
        number = self._number(index)
        return next(self._items(number, number + 1))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        if self.order is None:
            return self._items(0, len(self))
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self):,} files below {self.root!r}>"

    def label(self, index: int) -> int:
        return int(self.columns["labels"][self._folder(self._number(index))])

    def labels(self) -> np.ndarray:
        """Return the labels of all files in a new array, int64 (N,)."""
        firsts = np.append(self.columns["firsts"], len(self.columns["ends"])).astype(np.int64)
        labels = np.repeat(self.columns["labels"].astype(np.int64), np.diff(firsts))
        return labels if self.order is None else labels[self.order]

    def digest(self) -> str:
        """Return a checksum of the paths below the root, in their order, and of the labels."""
        digest = hashlib.sha256()
        arrays = [self.columns[name] for name in COLUMNS]
        for array in arrays if self.order is None else [*arrays, self.order]:
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        return digest.hexdigest()

    def subset(self, numbers: Sequence[int]) -> "Listing":
        """Return a listing of the files at the indices ``numbers`` of this listing, in the order of ``numbers``."""
        numbers = np.asarray(numbers, smallest_dtype(0, len(self)))
        return Listing(self.root, self.columns, numbers if self.order is None else self.order[numbers])

    def _number(self, index: int) -> int:
        """Return the index into the columns of the file at an index, which may be negative."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"file {index} of {count}")
        index = int(index) % count
        return index if self.order is None else int(self.order[index])

    def _folder(self, number: int) -> int:
        return bisect_right(self.columns["firsts"], number) - 1  # NumPy's search would copy a mapped column

    def _items(self, start: int, stop: int) -> Iterator[tuple[str, int]]:
        """Yield (path, label) of the files ``start`` to ``stop - 1`` of the columns."""
        names, ends, folders, folder_ends, labels, firsts = (self.columns[name] for name in COLUMNS)
        i = self._folder(start) if start < stop else 0
        while start < stop:
            last = int(firsts[i + 1]) if i + 1 < len(firsts) else len(ends)
            block = min(stop, last, start + BLOCK)
            folder = folders[int(folder_ends[i - 1]) if i else 0 : int(folder_ends[i])].tobytes()
            folder, label = self.root + os.fsdecode(folder), int(labels[i])
            begin = origin = int(ends[start - 1]) if start else 0
            block_ends = ends[start:block].tolist()
            text = names[origin : block_ends[-1]].tobytes()
            for end in block_ends:
                yield folder + os.fsdecode(text[begin - origin : end - origin]), label
                begin = end
            start, i = block, i + (block == last)


class Labels(_Compared):
    """Read-only sequence of the labels of a ``Listing``."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.listing.labels()[index].tolist()
        return self.listing.label(index)

    def __iter__(self) -> Iterator[int]:
        return iter(self.listing.labels().tolist())

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.listing.labels().astype(dtype or np.int64, copy=False)

    def __repr__(self) -> str:
        return f"<labels of {self.listing!r}>"


COLUMNS = ("names", "ends", "folders", "folder_ends", "labels", "firsts")


def build_columns(
    root: str, folder_files: Iterable[FolderFiles], max_files: int | None = None
) -> dict[str, np.ndarray]:
    """Return the columns of a ``Listing``: names and their ends; folders, their ends, labels and first files.

    Args:
        root: common prefix of the folders' paths, which is not stored.
        folder_files: groups of consecutive files that share a folder and a label.
        max_files: maximum number of files.

    Raises:
        TooManyFilesError: there are more than ``max_files``.
    """
    names, ends, folders, folder_ends, labels, firsts = bytearray(), [], bytearray(), [], [], []
    count, parts = 0, []
    for folder, label, files in folder_files:
        if not files:
            continue
        firsts.append(count)
        labels.append(label)
        folders += os.fsencode(os.path.join(folder, "").removeprefix(root))
        folder_ends.append(len(folders))
        encoded = [os.fsencode(name) for name in files]
        parts.append(len(names) + np.cumsum([len(name) for name in encoded], dtype=np.int64))
        names += b"".join(encoded)
        count += len(files)
        if max_files is not None and count > max_files:
            raise TooManyFilesError
    ends = np.concatenate([np.empty(0, np.int64), *parts])
    return {
        "names": np.frombuffer(bytes(names), np.uint8),
        "ends": ends.astype(smallest_dtype(0, len(names))),
        "folders": np.frombuffer(bytes(folders), np.uint8),
        "folder_ends": np.array(folder_ends, smallest_dtype(0, len(folders))),
        "labels": np.array(labels, smallest_dtype(min(labels, default=0), max(labels, default=0))),
        "firsts": np.array(firsts, smallest_dtype(0, count)),
    }

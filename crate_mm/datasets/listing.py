"""The files of a tree as bytes and numbers: a few dozen bytes a file, which processes share."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from .mapped import smallest_dtype

BLOCK = 4096  # files that are turned into text together
FolderFiles = tuple[str, int, list[str]]  # a folder, the label of its files, and their names


class TooManyFilesError(Exception):
    """There are more files than were asked for."""


class Listing(Sequence):
    """Pairs (path, label) in the place of a list of them, which takes 177 bytes a file and process.

    Args:
        root: the folder that the paths begin with.
        columns: of ``build_columns``, in memory or mapped (``MappedArrays``).
        order: which of the files it has, by their numbers; all of them by default.
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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    def __repr__(self) -> str:
        return f"<{len(self):,} files below {self.root!r}>"

    def label(self, index: int) -> int:
        return int(self.columns["labels"][self._run(self._number(index))])

    def labels(self) -> np.ndarray:
        """The labels of all files, int64 (N,): an array of its own."""
        firsts = np.append(self.columns["firsts"], len(self.columns["ends"])).astype(np.int64)
        labels = np.repeat(self.columns["labels"].astype(np.int64), np.diff(firsts))
        return labels if self.order is None else labels[self.order]

    def digest(self) -> str:
        """A checksum of all names below the root, in their order, and of the labels."""
        digest = hashlib.sha256()
        arrays = [self.columns[name] for name in COLUMNS]
        for array in arrays if self.order is None else [*arrays, self.order]:
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        return digest.hexdigest()

    def subset(self, numbers: Sequence[int]) -> "Listing":
        """Those of the files that have these numbers, in their order."""
        numbers = np.asarray(numbers, smallest_dtype(0, len(self)))
        return Listing(self.root, self.columns, numbers if self.order is None else self.order[numbers])

    def _number(self, index: int) -> int:
        """The number of the file at an index, which may count from the end."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"file {index} of {count}")
        index = int(index) % count
        return index if self.order is None else int(self.order[index])

    def _run(self, number: int) -> int:
        return bisect_right(self.columns["firsts"], number) - 1  # NumPy's search would copy a column that is mapped

    def _items(self, start: int, stop: int) -> Iterator[tuple[str, int]]:
        """The pairs of files that follow one another."""
        names, ends, folders, folder_ends, labels, firsts = (self.columns[name] for name in COLUMNS)
        run = self._run(start) if start < stop else 0
        while start < stop:
            last = int(firsts[run + 1]) if run + 1 < len(firsts) else len(ends)
            block = min(stop, last, start + BLOCK)
            folder = folders[int(folder_ends[run - 1]) if run else 0 : int(folder_ends[run])].tobytes()
            folder, label = self.root + os.fsdecode(folder), int(labels[run])
            begin = origin = int(ends[start - 1]) if start else 0
            these = ends[start:block].tolist()
            text = names[origin : these[-1]].tobytes()
            for end in these:
                yield folder + os.fsdecode(text[begin - origin : end - origin]), label
                begin = end
            start, run = block, run + (block == last)


class Labels(Sequence):
    """The labels of a ``Listing``, in the place of a list of them."""

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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.listing.labels().astype(dtype or np.int64, copy=False)

    def __repr__(self) -> str:
        return f"<labels of {self.listing!r}>"


COLUMNS = ("names", "ends", "folders", "folder_ends", "labels", "firsts")


def build_columns(root: str, runs: Iterable[FolderFiles], most: int | None = None) -> dict[str, np.ndarray]:
    """The columns of a ``Listing``: names and where each ends; folders, where each ends, its label and first file.

    Args:
        root: what the paths of the folders begin with, and is left out.
        runs: files that lie in one folder and follow one another, with the folder and their label.
        most: how many files there may be.

    Raises:
        TooManyFilesError: there are more.
    """
    names, ends, folders, folder_ends, labels, firsts = bytearray(), [], bytearray(), [], [], []
    count, parts = 0, []
    for folder, label, files in runs:
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
        if most is not None and count > most:
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

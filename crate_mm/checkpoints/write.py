"""The writing of a checkpoint, from memory to a file that is there whole or not at all."""

from pathlib import Path

import torch

from ..io.files import atomic_file


class _Direct:
    """Writes past a file's buffer: a process that is forked off meanwhile would have a copy of what is in it.

    Each write is whole, where the system takes less than 2 GB at a time. ``error`` is what a write failed with:
    PyTorch, which closes its archive after that, may raise another one.
    """

    def __init__(self, file) -> None:
        self._raw = file.raw
        self.error: OSError | None = None

    def write(self, data) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[self._raw.write(left) :]
        except OSError as error:
            self.error = error
            raise
        return size

    def flush(self) -> None:
        """Nothing: there is no buffer."""


def write_checkpoint(contents: dict, path: str | Path) -> None:
    """Write a checkpoint in PyTorch's format, with its checksums, beside its place, sync it to disk, and rename it.

    No second copy of it is made in memory.

    Args:
        contents: tensors and plain data.
        path: of the file; its folder is made if need be.

    Raises:
        OSError: the disk is full, or the like. What was at ``path`` is as it was.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        direct = _Direct(file)
        try:
            torch.save(contents, direct)
        except Exception:
            if direct.error:
                raise direct.error from None
            raise

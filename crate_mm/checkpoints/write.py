"""Write a checkpoint atomically."""

from pathlib import Path

import torch

from ..io.files import atomic_file


class _Direct:
    """Unbuffered writer. A process forked during a buffered write would inherit a copy of the buffer.

    ``write`` writes all data, although the system accepts less than 2 GB per call. ``error`` stores the error of a
    failed write, because PyTorch then closes its archive, which may raise another error.
    """

    def __init__(self, file) -> None:
        self._raw = file.raw
        self.error: OSError | None = None

    def write(self, data) -> int:
        remaining = memoryview(data).cast("B")
        size = len(remaining)
        try:
            while remaining:
                remaining = remaining[self._raw.write(remaining) :]
        except OSError as error:
            self.error = error
            raise
        return size

    def flush(self) -> None:
        """Do nothing, because there is no buffer."""


def write_checkpoint(contents: dict, path: str | Path) -> None:
    """Write a checkpoint in PyTorch's format, with checksums.

    It is written to a temporary file, which is synced to disk and then renamed. The contents are not copied in memory.

    Args:
        contents: tensors and plain data.
        path: file to write; its folder is created if needed.

    Raises:
        OSError: the write failed, for example on a full disk. An existing file at ``path`` is unchanged.
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

"""Encode images for packing, unchanged or shrunk, in several processes."""

import io
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..datasets.classification import UNREADABLE
from ..datasets.images import MAX_IMAGE_BYTES, convert, is_system_error, open_image
from ..datasets.workers import init_worker
from ..io.untrusted import read_regular

PREFETCH = 8  # images that a process encodes in advance


def encode(path: str, short_side: int | None, quality: int) -> tuple[str | None, bytes | str]:
    """Return a file's extension and bytes, shrunk to ``short_side``; for an unreadable file, None and the reason."""
    try:
        data = read_regular(path, MAX_IMAGE_BYTES)
        image = open_image(data, mode=None)
        if short_side is None or min(image.size) <= short_side:
            return Path(path).suffix, data
        scale = short_side / min(image.size)
        size = tuple(max(round(side * scale), short_side) for side in image.size)
        smaller = io.BytesIO()
        convert(image).resize(size, Image.Resampling.BICUBIC).save(smaller, "JPEG", quality=quality)
        return ".jpg", smaller.getvalue()
    except UNREADABLE as error:
        if is_system_error(error):
            raise
        return None, str(error) or type(error).__name__


class _Encoded(Dataset):
    def __init__(self, source: Dataset, positions: Sequence[int], short_side: int | None, quality: int) -> None:
        self.source, self.positions, self.options = source, positions, (short_side, quality)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[str | None, bytes | str] | Exception:
        try:
            return encode(self.source.path(int(self.positions[index])), *self.options)
        except OSError as error:  # return the error: the loader would add a traceback to a raised error
            return error


def encode_parallel(
    source: Dataset, positions: Sequence[int], workers: int, short_side: int | None, quality: int
) -> Iterator[tuple[str | None, bytes | str]]:
    """Yield ``encode`` of a source's images at ``positions``, in order, computed by ``workers`` processes.

    Each process encodes at most ``PREFETCH`` images in advance, so that a slow disk does not fill the memory. The
    worker processes ignore Ctrl-C. They exit when this process exits for any reason.

    Raises:
        OSError: a system error (``images.SYSTEM_ERRNOS``), not caused by an image.
    """
    if not len(positions):
        return
    loader = DataLoader(
        _Encoded(source, positions, short_side, quality),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        collate_fn=identity,
        worker_init_fn=_init_worker,
    )
    for result in loader:
        if isinstance(result, Exception):
            raise result
        yield result


def _init_worker(worker_id: int) -> None:
    init_worker(worker_id)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # PyTorch's watchdog ends a worker gracefully: it waits until the worker's images are consumed, possibly forever.
    multiprocessing.parent_process().join()
    os._exit(1)


def identity(sample: object) -> object:
    return sample

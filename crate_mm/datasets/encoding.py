"""What goes into a pack: an image's file as it is or made smaller, by several processes."""

import io
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..io.untrusted import read_regular
from .classification import UNREADABLE
from .images import MAX_IMAGE_BYTES, convert, is_system_error, open_image
from .workers import init_worker

AHEAD = 8  # images that a process makes and nobody has asked for yet


def encode(path: str, short_side: int | None, quality: int) -> tuple[str | None, bytes | str]:
    """A file's suffix and bytes, made smaller where it is larger; or None and why it cannot be read."""
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
        self.source, self.positions, self.how = source, positions, (short_side, quality)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[str | None, bytes | str] | Exception:
        try:
            return encode(self.source.path(int(self.positions[index])), *self.how)
        except OSError as error:  # the loader would bury it in a traceback
            return error


def encode_parallel(
    source: Dataset, positions: Sequence[int], workers: int, short_side: int | None, quality: int
) -> Iterator[tuple[str | None, bytes | str]]:
    """``encode`` of a source's images at some positions, in that order, by so many processes.

    No process is more than ``AHEAD`` images ahead of what was asked for: a slow disk takes no memory. The processes end
    with this one, however it ends, and leave Ctrl-C to it.

    Raises:
        OSError: no image is to blame for it, see ``images.SYSTEM_ERRNOS``.
    """
    if not len(positions):
        return
    loader = DataLoader(
        _Encoded(source, positions, short_side, quality),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
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
    """PyTorch's own watch ends a worker in an orderly way, which waits for ever for somebody to take its images."""
    multiprocessing.parent_process().join()
    os._exit(1)


def identity(sample: object) -> object:
    return sample

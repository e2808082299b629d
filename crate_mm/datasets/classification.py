"""The dataset that the loaders see: a source, its transforms, and what happens to an unreadable image."""

import errno
import random
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from ..registry import DATASETS, FUNCTIONS
from ..untrusted import shown
from .base import IMAGE, NUMBER, Field, Index, SampleDataset, source_of
from .decode import TakesBytes
from .images import UnreadableImageError, is_of_the_system
from .transforms import build_steps, build_transforms, to_uint8

# What open_image, the operating system, and sources and transforms of a user's own raise for an image.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)
UNREADABLE += (TypeError, KeyError, IndexError, OverflowError, NotImplementedError, struct.error)


class UnreadableImagesError(RuntimeError):
    """More images than allowed could not be read."""


@DATASETS.register_module()
class ClassificationDataset(SampleDataset):
    """Samples ``{inputs: uint8 (C, H, W), labels: int, sample_idx: int, unreadable: int, unreadable_reason: str}``.

    ``sample_idx`` is the sample's position in the source. Where the requested image cannot be read, the next one takes
    its place, ``unreadable`` is the position of the requested image, else -1, and ``unreadable_reason`` says why it
    cannot be read, else ''. The ``UnreadableImages`` hook counts and reports them.

    An index may be a pair ``(position, seed)``: then torch's, NumPy's and Python's random states are seeded before the
    transforms, so that an augmentation depends on the run's seed, the epoch and the sample alone, and not on the
    number of processes, workers or restarts. The sample then holds its seed too, ``sample_seed: int``, for what the
    model draws for it.

    Args:
        source: config of ``DATASETS`` for a map-style dataset of (PIL image, label) pairs, or such a dataset.
            ``images`` is its contract, see ``Source``.
        transforms: configs of ``TRANSFORMS`` that leave a PIL image or a uint8 tensor. Where the first is a
            ``DecodeRandomResizedCrop`` or a ``DecodeResize`` and the source has ``read(i) -> (bytes, label)``, it gets
            the encoded image.
        max_unreadable: how many images may be unreadable before the run stops.
    """

    def __init__(self, source: dict | Dataset, transforms: list[dict] = (), max_unreadable: int = 100) -> None:
        self.source = DATASETS.build(source) if isinstance(source, dict) else source
        self.images = source_of(self.source)
        steps = build_steps(transforms)
        self.decode = None  # a first transform that takes the encoded image
        if steps and isinstance(steps[0], TakesBytes) and self.images.encoded:
            self.decode, *steps = steps
        self.transforms = build_transforms(steps)
        self.max_unreadable = max_unreadable

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the labels, or None if the source has none."""
        classes = self.images.classes
        return None if classes is None else [str(name) for name in classes]

    @property
    def spec(self) -> dict[str, Field | list[Field]]:
        return {"inputs": IMAGE, **dict.fromkeys(("labels", "sample_idx", "unreadable"), NUMBER)}

    def labels(self) -> Sequence[int] | None:
        return self.images.targets

    def describe(self, position: int) -> str:
        """Return the image's file, or its position where the source names no files."""
        return self.images.path(position)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Index) -> dict:
        requested, seed = index if isinstance(index, tuple) else (index, None)
        position, inputs, label, reason = self._read(requested, seed)
        sample = {"inputs": inputs, "labels": label, "sample_idx": position}
        sample |= {"unreadable": -1 if position == requested else requested, "unreadable_reason": reason}
        return sample if seed is None else {**sample, "sample_seed": seed}

    def _load(self, position: int, seed: int | None) -> tuple[Image.Image | torch.Tensor, int]:
        """The (image, label) pair at a position, with the random states seeded for its transforms."""
        image, label = self.images.read(position) if self.decode else self.images[position]
        if seed is not None:
            seed_everything(seed)
        return (self.decode(image) if self.decode else image), label

    def _read(self, requested: int, seed: int | None) -> tuple[int, torch.Tensor, int, str]:
        """Load the requested image or the next readable one.

        Returns:
            Its position, the transformed image, its label, and why the requested one cannot be read, or ''.
        """
        failed, reasons = [], []
        for step in range(len(self)):
            position = (requested + step) % len(self)
            try:
                image, label = self._load(position, seed)
            except UNREADABLE as error:
                if is_of_the_system(error):
                    files = error.errno != errno.ENOMEM
                    advice = "ulimit -n N raises the limit, fewer and larger shards need less" if files else "free some"
                    raise UnreadableImagesError(f"no image can be read: {shown(error)}; {advice}") from None
                reasons.append(str(error) or type(error).__name__)
            else:
                try:
                    return position, to_uint8(self.transforms(image)), label, next(iter(reasons), "")
                except UnreadableImageError as error:
                    reasons.append(str(error))
                except Exception as error:
                    if not is_thin(image):
                        raise  # a mistake in the transforms
                    reasons.append(f"it is very thin, and a transform fails: {type(error).__name__}: {error}")
            failed.append(self.describe(position))
            if len(failed) > self.max_unreadable:
                break
        raise UnreadableImagesError(
            f"{len(failed)} images in a row cannot be read: {', '.join(map(shown, failed))}; "
            f"the last one: {shown(reasons[-1])}"
        )


def is_thin(image: Image.Image | torch.Tensor) -> bool:
    """Whether one side of an image is so much longer than the other that transforms may not know what to do."""
    short, long = sorted(v2.functional.get_size(image))
    return long > 100 * short


@FUNCTIONS.register_module()
def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    """PyTorch's ``default_collate``, which leaves images in the order that they have in memory.

    Images ``(C, H, W)`` whose channels lie side by side, as every decoder gives them, become a batch ``(B, C, H, W)``
    of the same order (``torch.channels_last``): putting each channel together takes five times as long as copying.
    """
    images = samples[0].get("inputs") if isinstance(samples[0], dict) else None
    if isinstance(images, torch.Tensor) and images.ndim == 3 and images.stride(0) < images.stride(2):
        rows = default_collate([{**sample, "inputs": sample["inputs"].permute(1, 2, 0)} for sample in samples])
        return {**rows, "inputs": rows["inputs"].permute(0, 3, 1, 2)}
    return default_collate(samples)


def seed_everything(seed: int) -> None:
    """Seed the random states that transforms draw from, of this process only."""
    # Not torch.manual_seed: that queues a call for each GPU, sample by sample, in workers that never use one.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)

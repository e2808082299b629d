"""The dataset that loaders read: a source, its transforms, and the handling of unreadable images."""

import errno
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from ..io.untrusted import sanitized
from ..registry import DATASETS, FUNCTIONS
from .base import IMAGE, NUMBER, Field, Index, SampleDataset, source_of
from .decode import DecodesBytes
from .images import UnreadableImageError, is_system_error
from .transforms import build_steps, build_transforms, to_uint8

# Raised for an unreadable image by open_image, the operating system, custom sources and custom decoders.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)
UNREADABLE += (TypeError, KeyError, IndexError, OverflowError, NotImplementedError, struct.error)


class UnreadableImagesError(RuntimeError):
    """More images than allowed could not be read."""


@DATASETS.register_module()
class ClassificationDataset(SampleDataset):
    """Samples ``{inputs: uint8 (C, H, W), labels: int, sample_idx: int, unreadable: int, unreadable_reason: str}``.

    ``sample_idx`` is the sample's position in the source. An unreadable image is replaced by the next readable one.
    ``unreadable`` is then the position of the unreadable image, and ``unreadable_reason`` is the error message. For a
    readable image they are -1 and ''. The ``UnreadableImages`` hook counts and reports unreadable images.

    An index may be a pair ``(position, seed)``. The random states of torch, NumPy and Python are then seeded before the
    transforms. An augmentation thus depends only on the run's seed, the epoch and the sample, and is the same for any
    number of processes, workers or restarts. The sample then also holds its seed, ``sample_seed: int``, for the model's
    own random draws.

    Args:
        source: config of ``DATASETS`` for a map-style dataset of (PIL image, label) pairs, or the dataset itself.
        transforms: configs of ``TRANSFORMS``; the result must be a PIL image or a uint8 tensor. If the first one is a
            ``DecodeRandomResizedCrop`` or a ``DecodeResize`` and the source has ``read(i) -> (bytes, label)``, this
            transform gets the encoded image.
        max_unreadable: number of unreadable images up to which the run continues.

    Attributes:
        images: ``source`` as a ``Source``.
    """

    def __init__(self, source: dict | Dataset, transforms: list[dict] = (), max_unreadable: int = 100) -> None:
        self.source = DATASETS.build(source) if isinstance(source, dict) else source
        self.images = source_of(self.source)
        self.max_unreadable = max_unreadable
        steps = build_steps(transforms)
        self.transforms = build_transforms(steps)  # all transforms, for decoded images
        self._set_views([steps])

    def _set_views(self, views: list[list[v2.Transform]]) -> None:
        """Set the transforms of each view. The first transforms decode images if the source and all views allow it."""
        self.encoded = self.images.encoded and all(steps and isinstance(steps[0], DecodesBytes) for steps in views)
        self._decoders = [steps[0] for steps in views] if self.encoded else []
        self._views = [build_transforms(steps[1:] if self.encoded else steps) for steps in views]

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
        """Return the image's file, or its position if the source has no file names."""
        return self.images.path(position)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Index) -> dict:
        requested, seed = index if isinstance(index, tuple) else (index, None)
        position, views, label, reason = self._read(requested, seed)
        sample = {"inputs": self._inputs(views), "labels": label, "sample_idx": position}
        sample |= {"unreadable": -1 if position == requested else requested, "unreadable_reason": reason}
        return sample if seed is None else {**sample, "sample_seed": seed}

    def _inputs(self, views: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        return views[0]

    def _load(self, position: int, seed: int | None) -> tuple[list[Image.Image | torch.Tensor], Any]:
        """Seed the random states, and return the decoded image for each view and the label of the image."""
        image, label = self.images.read(position) if self.encoded else self.images[position]
        if seed is not None:
            seed_everything(seed)
        return [decode(image) for decode in self._decoders] or [image] * len(self._views), label

    def _transform(self, images: list[Image.Image | torch.Tensor], label: Any) -> tuple[list[torch.Tensor], Any]:
        """Return the transformed images, one for each view, and the label."""
        return [to_uint8(transform(image)) for transform, image in zip(self._views, images)], label

    def _read(self, requested: int, seed: int | None) -> tuple[int, list[torch.Tensor], Any, str]:
        """Load the requested image or the next readable one.

        Returns:
            Position, views and label of the loaded image, and why the requested image is unreadable, or ''.
        """
        paths, reasons = [], []
        for step in range(len(self)):
            position = (requested + step) % len(self)
            try:
                images, label = self._load(position, seed)
            except UNREADABLE as error:
                if is_system_error(error):
                    files = error.errno != errno.ENOMEM
                    advice = "raise the limit (ulimit -n N) or pack fewer, larger shards" if files else "free memory"
                    raise UnreadableImagesError(f"no image can be read: {sanitized(error)}; {advice}") from None
                reasons.append(str(error) or type(error).__name__)
            else:
                try:
                    return position, *self._transform(images, label), next(iter(reasons), "")
                except UnreadableImageError as error:
                    reasons.append(str(error))
                except Exception as error:
                    if not any(map(has_extreme_aspect_ratio, images)):
                        raise  # a mistake in the transforms
                    reasons.append(f"extreme aspect ratio, and a transform fails: {type(error).__name__}: {error}")
            paths.append(self.describe(position))
            if len(paths) > self.max_unreadable:
                break
        raise UnreadableImagesError(
            f"{len(paths)} images in a row cannot be read: {', '.join(map(sanitized, paths))}; "
            f"the last error: {sanitized(reasons[-1])}"
        )


def has_extreme_aspect_ratio(image: Image.Image | torch.Tensor) -> bool:
    """Return whether one side of an image is so much longer than the other that transforms may fail."""
    short, long = sorted(v2.functional.get_size(image))
    return long > 100 * short


@FUNCTIONS.register_module()
def collate(samples: list) -> Any:
    """Collate like PyTorch's ``default_collate``, but keep the memory format of images.

    Images ``(C, H, W)`` with interleaved channels, as every decoder returns them, become a ``torch.channels_last``
    batch ``(B, C, H, W)``: converting to contiguous channels takes five times as long as copying.
    """
    first = samples[0]
    if isinstance(first, dict):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, list) and first and isinstance(first[0], torch.Tensor):
        return [collate(list(views)) for views in zip(*samples, strict=True)]
    if isinstance(first, torch.Tensor) and first.ndim == 3 and first.stride(0) < first.stride(2):
        return default_collate([image.permute(1, 2, 0) for image in samples]).permute(0, 3, 1, 2)
    return default_collate(samples)


def seed_everything(seed: int) -> None:
    """Seed the random states that transforms use, in this process only."""
    # torch.manual_seed would queue a call for each GPU and sample, in workers that never use a GPU.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)

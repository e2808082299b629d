"""Inputs of the model that runs in the page: bytes of the shown images, and the preparation of drawings."""

import base64
import gzip
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...datasets.base import dataset_of
from ...datasets.classification import ClassificationDataset
from ...inference.white_box import ImageSamples


def pack_bytes(images: Tensor) -> dict[str, Any]:
    """Return uint8 images ``(B, C, H, W)`` as ``{shape, gzip}``."""
    text = base64.b64encode(gzip.compress(images.contiguous().numpy().tobytes(), 9, mtime=0)).decode()
    return {"shape": list(images.shape), "gzip": text}


def drawing_of(dataset: Dataset, positions: list[int]) -> dict[str, Any] | None:
    """Return how the page prepares a drawing, ``{kind, side, times}``; None if it cannot reproduce the transforms.

    ``kind`` is ``Source.drawing``: how the source's images were made. The transforms may only enlarge images by an
    integer, ``times``; this is tested on the images at ``positions``.
    """
    dataset = dataset_of(dataset)
    source = dataset.source if isinstance(dataset, (ClassificationDataset, ImageSamples)) else None
    if source is None or source.drawing is None:
        return None
    for position in positions:
        original = torch.from_numpy(np.array(source[position][0]))
        prepared = dataset[position]["inputs"]
        times = prepared.shape[-1] // original.shape[-1]
        if prepared.shape[0] != 1 or not torch.equal(enlarge(original, times), prepared[0]):
            return None
    return {"kind": source.drawing, "side": original.shape[-1], "times": times}


def enlarge(image: Tensor, times: int) -> Tensor:
    """Enlarge a uint8 image ``(H, W)`` bilinearly and round after each axis, as ``pixels.js`` and Pillow do."""

    def along(image: Tensor) -> Tensor:
        at = (torch.arange(image.shape[-1] * times) + 0.5) / times - 0.5
        first = at.floor().long()
        low, high = (image[:, (first + i).clamp(0, image.shape[-1] - 1)].double() for i in (0, 1))
        return ((1 - at + first) * low + (at - first) * high + 0.5).floor().to(torch.uint8)

    return image if times == 1 else along(along(image).mT).mT

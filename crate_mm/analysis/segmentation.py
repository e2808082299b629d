"""Segmentation that nobody taught: masks from the CLS token's attention, and how well they fit true ones.

Source: Yu et al., "Emergence of Segmentation with Minimalistic White-Box Transformers", CPAL 2024, arXiv 2308.16271.
Shapes: K heads, N patches, H x W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MASK_FRACTION = 0.6  # of a map's entries, which are set to 1
VOID = 255  # the label of pixels that count neither way, in PASCAL VOC


class ClassOverlap(NamedTuple):
    """A class of an image, the head whose mask fits it best, counted from 0, and the overlap of the two."""

    label: int
    head: int
    iou: float


def attention_masks(attention: Tensor, share: float = MASK_FRACTION) -> Tensor:
    """The coarse masks of maps: of each its largest entries, the given share of them. ``(..., N) -> (..., N)`` of bool.

    ``round(share N)`` entries are in a mask, at least one; of equal entries the first.

    Raises:
        ValueError: ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    count = max(round(share * attention.shape[-1]), 1)
    order = attention.argsort(dim=-1, descending=True, stable=True)
    masks = torch.zeros_like(attention, dtype=torch.bool)
    return masks.scatter_(-1, order[..., :count], True)


def best_heads(masks: Tensor, truth: Tensor, ignored: tuple[int, ...] = (0, VOID)) -> list[ClassOverlap]:
    """Of each class in an image the head whose mask fits best: ``max_k |S A_k| / (|S| + |A_k| - |S A_k|)``.

    Pixels that are ``VOID`` count neither way.

    Args:
        masks: of the heads, ``(K, H, W)`` of bool.
        truth: each pixel's class, ``(H, W)``.
        ignored: classes that are left out: the background, and void.

    Raises:
        ValueError: the sizes differ.
    """
    if masks.shape[1:] != truth.shape:
        raise ValueError(f"masks of {tuple(masks.shape[1:])} pixels do not fit a truth of {tuple(truth.shape)}")
    counted = truth != VOID
    found = []
    for label in truth.unique().tolist():
        if label in ignored:
            continue
        region = truth == label
        both = (masks & region).sum((-2, -1))
        either = (masks & counted).sum((-2, -1)) + region.sum() - both
        overlap = both / either
        head = int(overlap.argmax())
        found.append(ClassOverlap(int(label), head, overlap[head].item()))
    return found


def mean_iou(images: list[list[ClassOverlap]]) -> float:
    """The mean over classes, then over images, of those images that hold a class; NaN without any."""
    means = [sum(c.iou for c in classes) / len(classes) for classes in images if classes]
    return sum(means) / len(means) if means else float("nan")

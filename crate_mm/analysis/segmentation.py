"""Segmentation without labels: masks from the CLS token's attention, and their IoU with ground-truth masks.

Source: Yu et al., "Emergence of Segmentation with Minimalistic White-Box Transformers", CPAL 2024, arXiv 2308.16271.
Shapes: K heads, N patches, H x W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MASK_FRACTION = 0.6  # fraction of a map's entries in its mask
VOID = 255  # PASCAL VOC's label of pixels that are ignored


class ClassOverlap(NamedTuple):
    """A class of an image, the head (from 0) whose mask has the highest IoU with the class, and this IoU."""

    label: int
    head: int
    iou: float


def attention_masks(attention: Tensor, fraction: float = MASK_FRACTION) -> Tensor:
    """Return the masks of the largest entries of maps, ``(..., N) -> (..., N)`` of bool.

    A mask has ``round(fraction N)`` entries, but at least one. Ties go to the first entry.

    Raises:
        ValueError: ``fraction`` is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    count = max(round(fraction * attention.shape[-1]), 1)
    order = attention.argsort(dim=-1, descending=True, stable=True)
    masks = torch.zeros_like(attention, dtype=torch.bool)
    return masks.scatter_(-1, order[..., :count], True)


def best_heads(masks: Tensor, ground_truth: Tensor, ignored: tuple[int, ...] = (0, VOID)) -> list[ClassOverlap]:
    """Return, for each class in an image, the head with the highest IoU.

    The IoU of class pixels S and the mask A of a head is ``|S A| / (|S| + |A| - |S A|)``, without ``VOID`` pixels.

    Args:
        masks: masks of the heads, ``(K, H, W)`` of bool.
        ground_truth: class of each pixel, ``(H, W)``.
        ignored: classes to skip: background and void.

    Raises:
        ValueError: the sizes differ.
    """
    if masks.shape[1:] != ground_truth.shape:
        raise ValueError(
            f"masks of {tuple(masks.shape[1:])} pixels do not match a ground truth of {tuple(ground_truth.shape)}"
        )
    not_void = ground_truth != VOID
    overlaps = []
    for label in ground_truth.unique().tolist():
        if label in ignored:
            continue
        region = ground_truth == label
        intersection = (masks & region).sum((-2, -1))
        union = (masks & not_void).sum((-2, -1)) + region.sum() - intersection
        iou = intersection / union
        head = int(iou.argmax())
        overlaps.append(ClassOverlap(int(label), head, iou[head].item()))
    return overlaps


def mean_iou(images: list[list[ClassOverlap]]) -> float:
    """Return the IoU averaged over classes, then over the images with a class; NaN without such images."""
    means = [sum(c.iou for c in classes) / len(classes) for classes in images if classes]
    return sum(means) / len(means) if means else float("nan")

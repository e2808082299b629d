"""Features of image files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..evaluation.knn import features_of
from .transforms import EvalTransform, stack_readable


class Features(NamedTuple):
    """Features of images.

    Attributes:
        paths: paths of the n readable images.
        rows: features of the readable images, float32 ``(n, d)``.
        unreadable: paths of the unreadable images, each with the reason.
    """

    paths: list[Path]
    rows: Tensor
    unreadable: list[tuple[Path, str]]

    def __str__(self) -> str:
        suffix = f", {len(self.unreadable)} cannot be read" if self.unreadable else ""
        return f"features of {len(self.paths)} of {len(self.paths) + len(self.unreadable)} images{suffix}"


def extract(
    model: nn.Module,
    images: Iterable[Path],
    prepare: EvalTransform | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Features:
    """Return the features of image files. The task defines them: for a classifier, they are the pooled tokens.

    Args:
        model: from ``init_model`` or ``get_model``.
        images: paths.
        prepare: transform of the images (default: the model's test transforms).
        batch_size: images per forward pass.
        workers: threads that transform images in parallel.

    Raises:
        ValueError: no image can be read, or the model has no features.
    """
    prepare = prepare or EvalTransform(model)
    paths, unreadable = [], []

    def readable_batches() -> Iterator[dict[str, Tensor]]:
        for prepared in prepare.batches(images, batch_size, workers):
            unreadable.extend((item.image, item.reason) for item in prepared if item.reason)
            readable = [item for item in prepared if not item.reason]
            paths.extend(item.image for item in readable)
            if readable:
                yield {"inputs": stack_readable(readable)}

    rows = [features for _, features in features_of(model, readable_batches())]
    if not rows:
        raise ValueError(
            f"none of the {len(unreadable)} images can be read"
            + (f"; the first: {unreadable[0][1]}" if unreadable else "")
        )
    return Features(paths, torch.cat(rows), unreadable)

"""Features of images, a batch at a time, with what they are of."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .transforms import EvalTransform, stack_readable


class Features(NamedTuple):
    """The features of images, float32 ``(n, d)``, the paths of these, and the images that cannot be read, with why."""

    paths: list[Path]
    rows: Tensor
    broken: list[tuple[Path, str]]

    def __str__(self) -> str:
        broken = f", {len(self.broken)} cannot be read" if self.broken else ""
        return f"features of {len(self.paths)} of {len(self.paths) + len(self.broken)} images{broken}"


def extract(
    model: nn.Module,
    images: Iterable[Path],
    prepare: EvalTransform | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Features:
    """The features of image files, as the task defines them: a classifier's are the tokens that its head pools.

    Args:
        model: of ``init_model`` or ``get_model``.
        images: their paths.
        prepare: how they are prepared; as for the model's test if not given.
        batch_size: how many go through the model at once.
        workers: threads that prepare images meanwhile.

    Raises:
        ValueError: no image can be read, or the model has no features.
    """
    prepare = prepare or EvalTransform(model)
    paths, rows, broken = [], [], []
    for prepared in prepare.batches(images, batch_size, workers):
        good = [one for one in prepared if not one.reason]
        broken += [(one.image, one.reason) for one in prepared if one.reason]
        if good:
            with torch.inference_mode():
                data = model.data_preprocessor({"inputs": stack_readable(good)})
                rows.append(model(**data, mode="features").float().cpu())
            paths += [one.image for one in good]
    if not rows:
        raise ValueError(f"no image of {len(broken)} can be read" + (f"; the first: {broken[0][1]}" if broken else ""))
    return Features(paths, torch.cat(rows), broken)

"""A tree of photographs for measuring loaders: crops and rotations of the two photographs in scikit-learn."""

import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

DISTINCT = 2048  # about 170 MB of JPEGs


def write_tree(
    root: Path,
    images: int,
    classes: int = 10,
    splits: tuple[str, ...] = ("train",),
    size: tuple[int, int] = (500, 375),
    distinct: int = DISTINCT,
) -> Path:
    """Write ``images`` JPEGs of ``size`` to each split, in ImageNet's layout, on all cores.

    The first ``distinct`` images of a split are different photographs. The others are hard links to these. A link costs
    as much to decode as a file, but less to read from disk, because links fill less of the disk cache.
    """
    for split in splits:
        paths = [root / split / f"n{number % classes:08d}" / f"{number:06d}.JPEG" for number in range(images)]
        for path in paths[:classes]:
            path.parent.mkdir(parents=True, exist_ok=True)
        written = paths[:distinct]
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
            list(pool.map(functools.partial(_write, size=size), written, range(len(written)), chunksize=8))
        for number, path in enumerate(paths[distinct:]):
            os.link(written[number % distinct], path)
    return root


@functools.cache
def _photographs() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def _write(path: Path, number: int, size: tuple[int, int]) -> None:
    """Write a photograph; its number is the random seed."""
    photographs = _photographs()
    rng = np.random.default_rng(number)
    image = photographs[number % len(photographs)].rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    scale = rng.uniform(0.6, 0.9)
    width, height = int(image.width * scale), int(image.height * scale)
    left, top = rng.integers(image.width - width), rng.integers(image.height - height)
    image = image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
    image.save(path, quality=92)

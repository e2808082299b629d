"""A tree of photographs to measure loading with: crops and rotations of the two that scikit-learn ships."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def write_tree(
    root: Path, images: int, classes: int = 10, splits: tuple[str, ...] = ("train",), size: tuple[int, int] = (500, 375)
) -> Path:
    """Write ``images`` JPEGs of ``size`` to each split, in ImageNet's layout."""
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for split in splits:
        for number in range(images):
            folder = root / split / f"n{number % classes:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            image = photographs[number % len(photographs)].rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
            share = rng.uniform(0.6, 0.9)
            width, height = int(image.width * share), int(image.height * share)
            left, top = rng.integers(image.width - width), rng.integers(image.height - height)
            image = image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
            image.save(folder / f"{number:06d}.JPEG", quality=92)
    return root

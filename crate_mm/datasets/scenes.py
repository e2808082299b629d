"""Scenes with ground-truth masks, without a download: articles of clothing, or digits, pasted on a textured ground."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..io.files import home
from ..io.log import print_log
from ..io.untrusted import sanitized
from ..registry import DATASETS
from .benchmarks import FashionMNIST
from .masks import MaskSource
from .sources import Digits

GROUND = "ground"
THRESHOLD = 32  # smallest gray level of an object's pixels; the background is black in both datasets
SPLITS = {"train": 0, "val": 1}


@DATASETS.register_module()
class Scenes(MaskSource):
    """Gray scenes of Fashion-MNIST's articles, or of scikit-learn's digits, on textured ground, with their masks.

    A scene depends only on ``seed``, ``split`` and its position. Training scenes show training images of the object
    dataset; validation scenes show its test images. An object's mask contains its pixels of at least ``THRESHOLD``;
    later objects cover earlier ones. The classes are the ten classes of the objects, then the ground.

    Args:
        root: the folder that contains ``FashionMNIST``. Without ``FashionMNIST/raw`` in it, the objects are
            digits; the log says which objects are used.
        split: 'train' or 'val'.
        length: number of scenes.
        size: height and width in pixels.
        objects: smallest and largest number of objects per scene.
        scale: smallest and largest side of an object, as a fraction of ``size``.
        seed: seed of the scenes.

    Raises:
        ValueError: unknown ``split``, or invalid numbers.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "train",
        length: int = 2000,
        size: int = 64,
        objects: tuple[int, int] = (1, 4),
        scale: tuple[float, float] = (0.4, 0.7),
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose train, val")
        if length < 1 or size < 8 or not 1 <= objects[0] <= objects[1] or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                "Scenes: expected length >= 1, size >= 8, 1 <= objects[0] <= objects[1] and "
                f"0 < scale[0] <= scale[1] <= 1, got length={length}, size={size}, objects={objects}, scale={scale}"
            )
        self.split, self.length, self.size, self.objects, self.scale, self.seed = (
            split, length, size, tuple(objects), tuple(scale), seed
        )  # fmt: skip
        self.pictures, self.labels, names = self._objects(root)
        self.classes = [*names, GROUND]
        self._drawn: dict[int, tuple[Image.Image, np.ndarray]] = {}

    def _objects(self, root: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return the objects' images uint8 ``(n, h, w)``, their classes, and the classes' names."""
        train = self.split == "train"
        if root is not None and Path(home(root), "FashionMNIST", "raw").is_dir():
            source = FashionMNIST(root, train=train)
            text = "Fashion-MNIST's articles"
            pictures, labels = source.data.numpy(), source.targets.numpy()
        else:
            source = Digits("train" if train else "test")
            place = "data_root is not set" if root is None else f"{sanitized(Path(home(root)))} has no FashionMNIST/raw"
            text = f"scikit-learn's digits, because {place}"
            pictures, labels = source.images[source.numbers], source.targets
        print_log(f"Scenes of {self.split}: the objects are {text}", "current")
        return pictures, labels, list(source.classes)

    def __len__(self) -> int:
        return self.length

    def path(self, index: int) -> str:
        return f"scene {index} of {self.split}"

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Return a scene: a gray image and its labels, both of ``size`` x ``size`` pixels.

        Scenes are kept in memory, because drawing a batch takes half the time of a training step of a small model.
        """
        if index not in self._drawn:
            image, labels, _ = self._draw(index)
            self._drawn[index] = image, labels.astype(np.uint8)
        return self._drawn[index]

    def instances(self, index: int) -> list[np.ndarray]:
        """Return the visible pixels of each object of a scene, bool ``(size, size)``, in the order of drawing.

        Objects that are completely covered by others are left out.
        """
        numbers = self._draw(index)[2]
        return [numbers == number for number in np.unique(numbers) if number]

    def _draw(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        """Return a scene's image, its labels, and for each pixel the number of its object, from 1; 0 is the ground."""
        index = range(self.length)[index]  # IndexError ends an iteration over the source
        # NumPy guarantees that the numbers of this legacy generator do not change.
        random = np.random.RandomState([self.seed, SPLITS[self.split], index])
        scene, labels = self._ground(random), np.full((self.size, self.size), len(self.classes) - 1, np.int64)
        numbers = np.zeros_like(labels)
        for place in range(random.randint(self.objects[0], self.objects[1] + 1)):
            number = random.randint(len(self.pictures))
            side = max(round(random.uniform(*self.scale) * self.size), 1)
            picture = Image.fromarray(self.pictures[number]).resize((side, side), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture)
            if random.rand() < 0.5 and self.classes[0] != "0":  # a mirrored digit is not a digit
                pixels = pixels[:, ::-1]
            top, left = random.randint(0, self.size - side + 1, 2)
            window = np.s_[top : top + side, left : left + side]
            inside = pixels >= THRESHOLD
            scene[window][inside] = pixels[inside] * random.uniform(0.7, 1.0)
            labels[window][inside] = self.labels[number]
            numbers[window][inside] = place + 1
        return Image.fromarray(scene.round().astype(np.uint8)), labels, numbers

    def _ground(self, random: np.random.RandomState) -> np.ndarray:
        """Return a texture: stripes of a random direction and width, with noise at two scales; ``(size, size)``."""
        rows, columns = np.mgrid[: self.size, : self.size]
        angle, period, phase = random.uniform(0, np.pi), random.uniform(4, 16), random.uniform(0, 2 * np.pi)
        stripes = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period + phase)
        coarse = Image.fromarray(random.randint(0, 256, (5, 5)).astype(np.uint8))
        clouds = np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC), float) / 255
        noise = random.normal(0, 8, (self.size, self.size))
        return np.clip(random.uniform(50, 110) + random.uniform(10, 30) * stripes + 60 * clouds + noise, 0, 255)

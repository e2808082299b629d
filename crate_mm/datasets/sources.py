"""Sources: map-style datasets of ``(image, label)`` pairs, like torchvision's.

Custom sources may inherit from ``Source``, the contract. Any other class can be a source if ``__getitem__(i)`` returns
a PIL image and an integer label, and ``__len__`` returns the number of samples. Four members are optional: ``classes``,
the class names in the order of the labels; ``targets``, the labels; ``path(i)``, the i-th image's name in messages; and
``read(i)``, which returns the encoded image and its label, for faster decoding.
"""

import numpy as np
from PIL import Image
from torchvision import datasets

from ..registry import DATASETS
from .base import Source

DATASETS.register_module(module=datasets.FakeData)


@DATASETS.register_module()
class Digits(Source):
    """scikit-learn's handwritten digits: 1,797 grayscale images of 8 x 8 pixels, included in the library.

    The test split is a stratified quarter, the same in every run.

    Args:
        split: 'train' (1,347 images) or 'test' (450).

    Raises:
        ValueError: unknown ``split``.
    """

    classes = tuple("0123456789")
    drawing = "digits8"

    def __init__(self, split: str = "train") -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        if split not in ("train", "test"):
            raise ValueError(f"unknown split {split!r} of the digits: choose train, test")
        images, labels = load_digits(return_X_y=True)
        numbers = np.arange(len(labels))
        train, test = train_test_split(numbers, test_size=0.25, stratify=labels, random_state=0)
        self.numbers = train if split == "train" else test
        # Pixel values are 0..16.
        self.images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def targets(self) -> np.ndarray:
        return self.labels[self.numbers]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        number = self.numbers[index]
        return Image.fromarray(self.images[number]), int(self.labels[number])

    def path(self, index: int) -> str:
        return f"digit {self.numbers[index]} of scikit-learn's load_digits"

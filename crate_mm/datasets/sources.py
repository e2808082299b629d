"""Sources: map-style datasets of ``(image, label)`` pairs, as torchvision has them.

Any class of this kind can be a source, one of your own too: ``__getitem__(i)`` returns a PIL image and an integer
label, ``__len__`` the number of samples. Optional are ``classes``, the class names in the order of the labels, and
``path(i)``, which names the i-th image in messages.
"""

from pathlib import Path

import numpy as np
import torchvision
from PIL import Image
from torchvision import datasets

from ..registry import DATASETS

DATASETS.register_module(module=datasets.FakeData)
DATASETS.register_module(module=datasets.ImageFolder)


@DATASETS.register_module()
class ImageNet(datasets.ImageFolder):
    """ImageNet-1K, or images in its layout: ``root/train/<wnid>/*.JPEG`` and ``root/val/<wnid>/*.JPEG``.

    Class indices follow the sorted folder names. ``classes`` are English names where the folders are ImageNet-1K's
    thousand, and the folder names otherwise.

    Args:
        root: the folder that holds the split folders.
        split: 'train' or 'val'.

    Raises:
        ValueError: the folder is missing, empty or laid out otherwise.
    """

    def __init__(self, root: str | None, split: str = "train") -> None:
        expected = f"expected {root}/{split}/<class>/<image>.JPEG"
        if root is None:
            raise ValueError("data_root is not set: give the folder that holds train/ and val/")
        folder = Path(root) / split
        if not Path(root).is_dir():
            raise ValueError(f"data_root {root} is no folder: {expected}")
        if not folder.is_dir():
            found = ", ".join(sorted(p.name for p in Path(root).iterdir())[:5]) or "nothing"
            raise ValueError(f"data_root {root} has no folder {split!r} (it holds {found}): {expected}")
        try:
            super().__init__(str(folder))
        except FileNotFoundError as error:  # torchvision's, for no class folders or an empty one
            raise ValueError(f"data_root {root} is laid out wrongly: {expected}; {error}") from None
        if len(self.classes) == 1000 and self.classes[0] == "n01440764" and self.classes[-1] == "n15075141":
            self.classes = imagenet_class_names()

    def path(self, index: int) -> str:
        return self.samples[index][0]


def imagenet_class_names() -> list[str]:
    """The English names of ImageNet-1K's classes, in the order of the sorted WordNet ids."""
    return list(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@DATASETS.register_module()
class Digits:
    """scikit-learn's handwritten digits: 1,797 grayscale images of 8 x 8 pixels, which come with the library.

    A stratified quarter, the same in every run, is the test split.

    Args:
        split: 'train' (1,347 images) or 'test' (450).

    Raises:
        ValueError: unknown ``split``.
    """

    classes = tuple("0123456789")

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

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        number = self.numbers[index]
        return Image.fromarray(self.images[number]), int(self.labels[number])

    def path(self, index: int) -> str:
        return f"digit {self.numbers[index]} of scikit-learn's load_digits"

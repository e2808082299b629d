"""torchvision's readers of the transfer datasets, with messages that name missing data and their location.

Their arguments are ``root`` (the config's ``data_root``), torchvision's arguments for the split, and ``download``, off
by default. With several processes, the first process of each node downloads.
"""

import os
from typing import Any, ClassVar

import numpy as np
import torch.distributed
from PIL import Image
from torchvision import datasets

from ..registry import DATASETS
from .base import Source, data_folder
from .images import open_image


class _Benchmark:
    """torchvision dataset that raises ``ValueError`` with advice if data are missing or damaged.

    Args:
        root: the folder that contains the dataset's folder.
        download: download the data if they are missing.
        split: the arguments of torchvision's class that select the split.

    Raises:
        ValueError: ``root`` is not set, or the data are missing or damaged.
    """

    folder: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, root: str | None, download: bool = False, **split: Any) -> None:
        name = type(self).__name__
        root = data_folder(root, f"the folder that holds {name}'s {self.folder}")
        first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        shared = download and torch.distributed.is_initialized()
        if shared and not first:
            torch.distributed.barrier()  # until the first process of the node has downloaded
            download = False
        try:
            super().__init__(root, download=download, **split)
        except (RuntimeError, FileNotFoundError) as error:  # torchvision: data are missing or damaged
            if download:
                raise ValueError(f"{name} cannot be downloaded: {error}") from None
            raise ValueError(
                f"{name} is missing or incomplete in data_root {root}: expected {root}/{self.folder}, from "
                f"{self.source}; to download it, set download=True in the dataset's source"
            ) from None
        except Exception as error:  # readers of .mat, text and binary files raise many types
            raise ValueError(
                f"{name} in data_root {root} is damaged ({type(error).__name__}: {error}): download it "
                f"again from {self.source}"
            ) from None
        finally:
            if shared and first:
                torch.distributed.barrier()
        self._check_labels(root)

    def _check_labels(self, root: str) -> None:
        labels, count = np.asarray(self.targets), len(self.classes)
        if len(labels) != len(self) or (labels < 0).any() or (labels >= count).any():
            raise ValueError(
                f"{type(self).__name__} in data_root {root} is damaged (not every image has one of {count} classes): "
                f"download it again from {self.source}"
            )


class _FileBenchmark(_Benchmark):
    """Benchmark whose images are files."""

    @property
    def targets(self) -> list[int]:
        return self._labels

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.path(index)), self._labels[index]


@DATASETS.register_module()
class CIFAR10(_Benchmark, datasets.CIFAR10, Source):
    """50,000 training (``train=True``) and 10,000 test images of 32 x 32 pixels in 10 classes."""

    folder = "cifar-10-batches-py/ with data_batch_1 to 5, test_batch and batches.meta"
    source = f"{datasets.CIFAR10.url} unpacked"


@DATASETS.register_module()
class CIFAR100(_Benchmark, datasets.CIFAR100, Source):
    """50,000 training (``train=True``) and 10,000 test images of 32 x 32 pixels in 100 classes."""

    folder = "cifar-100-python/ with train, test and meta"
    source = f"{datasets.CIFAR100.url} unpacked"


@DATASETS.register_module()
class Flowers102(_FileBenchmark, datasets.Flowers102, Source):
    """Oxford Flowers-102, ``split`` 'train' (1,020 images), 'val' (1,020) or 'test' (6,149)."""

    # Older torchvision has no class names.
    classes = vars(datasets.Flowers102).get("classes", [str(label) for label in range(102)])
    folder = "flowers-102/ with jpg/, imagelabels.mat and setid.mat"
    source = "102flowers.tgz (unpacked) and both .mat files of https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

    def path(self, index: int) -> str:
        return str(self._image_files[index])


@DATASETS.register_module()
class OxfordIIITPet(_FileBenchmark, datasets.OxfordIIITPet, Source):
    """Oxford-IIIT Pet, ``split`` 'trainval' (3,680 images) or 'test' (3,669), 37 breeds."""

    folder = "oxford-iiit-pet/ with images/ and annotations/"
    source = "images.tar.gz and annotations.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/pets/, unpacked"

    def path(self, index: int) -> str:
        return str(self._images[index])


@DATASETS.register_module()
class FashionMNIST(_Benchmark, datasets.FashionMNIST, Source):
    """60,000 training (``train=True``) and 10,000 test images of clothing, 28 x 28 gray pixels, in 10 classes."""

    folder = "FashionMNIST/raw/ with {train,t10k}-{images-idx3,labels-idx1}-ubyte"
    source = "the four .gz files of https://github.com/zalandoresearch/fashion-mnist, unpacked"

"""Images in folders: ImageNet's layout, a tree of your own, and images without labels."""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..io.files import home
from ..io.log import print_log
from ..io.untrusted import sanitized
from ..registry import DATASETS
from .base import Source
from .cached_listing import listed
from .image_folder import ImageFolder
from .images import IMAGE_SUFFIXES, open_image
from .listing import FolderFiles, Listing
from .names import readable_names
from .scan import TreeScan, find_splits, log_excluded, sort_by_path, walk_tree


@DATASETS.register_module()
class ImageNet(ImageFolder):
    """ImageNet-1K, or images in its layout: ``root/train/<wnid>/*.JPEG`` and ``root/val/<wnid>/*.JPEG``.

    Where ``tools/pack_dataset.py`` has written ``root``, the dataset is a ``PackedImages``.

    Class indices follow the sorted folder names. ``classes`` are English names where the folders are ImageNet-1K's
    thousand, and the folder names otherwise.

    Args:
        root: the folder that holds the split folders.
        split: 'train' or 'val'.

    Raises:
        ValueError: the folder is missing, empty or laid out otherwise.
    """

    def __new__(cls, root: str | None = None, split: str = "train"):
        from .packed import INDEX, PackedImages

        if root is not None and (Path(home(root)) / split / INDEX).is_file():
            return PackedImages(root, split)
        return super().__new__(cls)

    def __init__(self, root: str | None, split: str = "train") -> None:
        expected = f"expected {root}/{split}/<class>/<image>.JPEG"
        if root is None:
            raise ValueError("data_root is not set: give the folder that holds train/ and val/")
        root = home(root)
        if not Path(root).is_dir():
            raise ValueError(f"data_root {root} is no folder: {expected}")
        folder = find_splits(root).get(split, Path(root) / split)
        if not folder.is_dir():
            found = ", ".join(sorted(sanitized(p.name) for p in Path(root).iterdir())[:5]) or "nothing"
            raise ValueError(f"data_root {root} has no folder {split!r} (it holds {found}): {expected}")
        try:
            super().__init__(folder)
        except FileNotFoundError as error:  # torchvision's, for no class folders or an empty one
            raise ValueError(f"data_root {root} is laid out wrongly: {expected}; {error}") from None
        self.classes = readable_names(self.classes)


@DATASETS.register_module()
class ClassFolders(ImageFolder):
    """Images of your own, a folder a class, whose name is the class's.

    Where ``root`` holds folders of splits, in any case, by one of the names in ``scan.SPLITS`` ('train' or 'training',
    'val', 'valid', 'validation' or 'dev', 'test' or 'testing'), these are the splits; without a folder for 'val' that
    for 'test' is taken, which is said. Otherwise ``root`` holds the class folders, and a share of each class, the same
    in every run, is set aside as 'val'.

    Args:
        root: the folder that holds the split folders or the class folders.
        split: 'train' or 'val'.
        val_fraction: the share set aside, where there are no split folders.
        divided: whether ``root`` holds split folders, where the names of its folders do not tell: a class may be
            called 'train'.

    Raises:
        ValueError: unknown ``split``, the folder is missing or empty, one split is there and no other, or a class is
            too small to be split.
    """

    named_by_folder = True  # in results: two folders are two datasets

    def __init__(
        self, root: str | None, split: str = "train", val_fraction: float = 0.2, divided: bool | None = None
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"unknown split {split!r}: choose train, val")
        expected = f"expected {root}/<class>/<image> or {root}/{{train,val}}/<class>/<image>"
        if root is None or not Path(home(root)).is_dir():
            raise ValueError(f"data_root {'is not set' if root is None else f'{root} is no folder'}: {expected}")
        root = home(root)
        splits = {} if divided is False else find_splits(root)
        if (splits or divided) and not ("train" in splits and set(splits) - {"train"}):
            has = (
                f"a folder {sanitized(next(iter(splits.values())).name)!r} and not the other split"
                if splits
                else "no split"
            )
            raise ValueError(
                f"data_root {root} has {has}: {expected}; divided=False in the dataset's source says that all are "
                "classes"
            )
        folder = (splits.get(split) or splits["test"]) if splits else root
        if splits and split == "val" and "val" not in splits:
            print_log(f"{root} has no folder for 'val': {sanitized(folder.name)} is taken", "current", logging.WARNING)
        try:
            super().__init__(folder)
        except FileNotFoundError as error:
            raise ValueError(f"data_root {root} is laid out wrongly: {expected}; {error}") from None
        if not splits:
            self._take(self._share(split, val_fraction))

    def _share(self, split: str, val_fraction: float) -> Sequence[tuple[str, int]]:
        if not isinstance(val_fraction, float) or not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}")
        samples, kept = self.samples, []
        labels = samples.labels() if isinstance(samples, Listing) else np.array([label for _, label in samples])
        by_class = np.split(
            np.argsort(labels, kind="stable"), np.bincount(labels, minlength=len(self.classes)).cumsum()
        )
        for name, mine in zip(self.classes, by_class):
            if len(mine) < 2:
                raise ValueError(
                    f"class {sanitized(name)!r} of {self.root} has one image: it takes two to split off a val share"
                )
            train, val = split_positions(len(mine), val_fraction)
            apart = mine[-1] - mine[0] >= len(mine)
            paths = [samples[i] for i in mine] if apart else samples[int(mine[0]) : int(mine[-1]) + 1]
            kept.append(mine[sorted(train if split == "train" else val, key=paths.__getitem__)])
        kept = np.concatenate(kept)
        return samples.subset(kept) if isinstance(samples, Listing) else [samples[i] for i in kept]


@lru_cache(maxsize=1024)
def split_positions(size: int, val_fraction: float) -> tuple[list[int], list[int]]:
    """Which of so many images are for training and which are set aside, the same in every run."""
    from sklearn.model_selection import train_test_split

    return tuple(train_test_split(range(size), test_size=val_fraction, random_state=0))


@DATASETS.register_module()
class ImageFiles(Source):
    """Every image below a folder, in the order of the paths, without labels: the label is -1.

    Which files are images is ``scan``'s to say; those that are left out are counted in the log.

    Args:
        root: the folder.
        channels: 3 for RGB images, 1 for gray ones.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """

    named_by_folder = True

    def __init__(self, root: str, channels: int = 3) -> None:
        root = home(root)
        if not Path(root).is_dir():
            raise ValueError(f"{root} is no folder")
        self.mode = "L" if channels == 1 else "RGB"
        root = str(Path(root))

        def walk(tree_scan: TreeScan) -> Iterator[FolderFiles]:
            for folder, names in sort_by_path(walk_tree(root, tree_scan)):
                yield folder, -1, tree_scan.filter_images(names)

        self.samples, excluded = listed(root, "all images", walk)
        log_excluded(root, excluded)
        if not len(self.samples):
            raise ValueError(f"no image is below {root}: expected files with {', '.join(IMAGE_SUFFIXES)}")

    @property
    def files(self) -> list[Path]:
        """The paths, as a list of its own."""
        return [Path(path) for path, _ in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.path(index), self.mode), -1

    def path(self, index: int) -> str:
        return str(Path(self.samples[index][0]))

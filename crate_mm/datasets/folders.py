"""Images in folders: ImageNet's layout, a custom tree, and images without labels."""

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
from .base import Source, data_folder
from .cached_listing import listed
from .image_folder import ImageFolder
from .images import IMAGE_SUFFIXES, open_image
from .listing import FolderFiles, Listing
from .names import readable_names
from .scan import TreeScan, find_splits, log_excluded, sort_by_path, walk_tree


@DATASETS.register_module()
class ImageNet(ImageFolder):
    """ImageNet-1K, or images in its layout: ``root/train/<wnid>/*.JPEG`` and ``root/val/<wnid>/*.JPEG``.

    If ``tools/pack_dataset.py`` has written ``root``, the dataset is a ``PackedImages``.

    Class indices follow the sorted folder names. ``classes`` are English names if the folders are those of ImageNet-1K,
    else the folder names.

    Args:
        root: the folder that holds the split folders.
        split: 'train' or 'val'.

    Raises:
        ValueError: the folder is missing, empty or has a different layout.
    """

    def __new__(cls, root: str | None = None, split: str = "train"):
        from .packed import INDEX, PackedImages

        if root is not None and (Path(home(root)) / split / INDEX).is_file():
            return PackedImages(root, split)
        return super().__new__(cls)

    def __init__(self, root: str | None, split: str = "train") -> None:
        expected = f"expected {root}/{split}/<class>/<image>.JPEG"
        root = data_folder(root, "the folder that holds train/ and val/")
        if not Path(root).is_dir():
            raise ValueError(f"data_root {root} is not a folder: {expected}")
        folder = find_splits(root).get(split, Path(root) / split)
        if not folder.is_dir():
            content = ", ".join(sorted(sanitized(p.name) for p in Path(root).iterdir())[:5]) or "nothing"
            raise ValueError(f"data_root {root} has no folder {split!r} (it contains {content}): {expected}")
        try:
            super().__init__(folder)
        except FileNotFoundError as error:  # there is no class folder, or a class has no image
            raise ValueError(f"data_root {root} has the wrong layout: {expected}; {error}") from None
        self.classes = readable_names(self.classes)


@DATASETS.register_module()
class ClassFolders(ImageFolder):
    """Custom images in one folder per class. The name of the folder is the name of the class.

    Split folders in ``root`` have one of the names in ``scan.SPLITS``, in upper or lower case: 'train' or 'training';
    'val', 'valid', 'validation' or 'dev'; 'test' or 'testing'. If 'val' is missing, 'test' is used, with a warning.
    Without split folders, ``root`` holds the class folders, and a fraction of each class is held out as 'val'. This
    split is the same in every run.

    Args:
        root: the folder that holds the split folders or the class folders.
        split: 'train' or 'val'.
        val_fraction: the fraction to hold out if there are no split folders.
        divided: whether ``root`` holds split folders (default: decided by the folders' names). Set False if a class is
            called 'train', for example.

    Raises:
        ValueError: ``split`` is unknown, the folder is missing or empty, only one split exists, or a class is too
            small to split.
    """

    named_by_folder = True

    def __init__(
        self, root: str | None, split: str = "train", val_fraction: float = 0.2, divided: bool | None = None
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"unknown split {split!r}: choose train, val")
        expected = f"expected {root}/<class>/<image> or {root}/{{train,val}}/<class>/<image>"
        if root is None or not Path(home(root)).is_dir():
            raise ValueError(f"data_root {'is not set' if root is None else f'{root} is not a folder'}: {expected}")
        root = home(root)
        splits = {} if divided is False else find_splits(root)
        if (splits or divided) and not ("train" in splits and set(splits) - {"train"}):
            has = (
                f"the split folder {sanitized(next(iter(splits.values())).name)!r} but not the other split"
                if splits
                else "no split"
            )
            raise ValueError(
                f"data_root {root} has {has}: {expected}; if all folders are classes, set divided=False in the "
                "dataset's source"
            )
        folder = (splits.get(split) or splits["test"]) if splits else root
        if splits and split == "val" and "val" not in splits:
            print_log(f"{root} has no folder for 'val': using {sanitized(folder.name)}", "current", logging.WARNING)
        try:
            super().__init__(folder)
        except FileNotFoundError as error:
            raise ValueError(f"data_root {root} has the wrong layout: {expected}; {error}") from None
        if not splits:
            self._set_samples(self._share(split, val_fraction))

    def _share(self, split: str, val_fraction: float) -> Sequence[tuple[str, int]]:
        if not isinstance(val_fraction, float) or not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}")
        samples, positions = self.samples, []
        labels = samples.labels() if isinstance(samples, Listing) else np.array([label for _, label in samples])
        by_class = np.split(
            np.argsort(labels, kind="stable"), np.bincount(labels, minlength=len(self.classes)).cumsum()
        )
        for name, members in zip(self.classes, by_class):
            if len(members) < 2:
                raise ValueError(
                    f"class {sanitized(name)!r} of {self.root} has one image: a split into train and val needs two"
                )
            train, val = split_positions(len(members), val_fraction)
            scattered = members[-1] - members[0] >= len(members)
            paths = [samples[i] for i in members] if scattered else samples[int(members[0]) : int(members[-1]) + 1]
            positions.append(members[sorted(train if split == "train" else val, key=paths.__getitem__)])
        positions = np.concatenate(positions)
        return samples.subset(positions) if isinstance(samples, Listing) else [samples[i] for i in positions]


@lru_cache(maxsize=1024)
def split_positions(size: int, val_fraction: float) -> tuple[list[int], list[int]]:
    """Return the training and the held-out positions of ``size`` images, the same in every run."""
    from sklearn.model_selection import train_test_split

    return tuple(train_test_split(range(size), test_size=val_fraction, random_state=0))


@DATASETS.register_module()
class ImageFiles(Source):
    """All images below a folder, sorted by path, without labels: the label is -1.

    ``scan`` decides which files are images; excluded files are counted in the log.

    Args:
        root: the folder.
        channels: 3 for RGB images, 1 for gray images.

    Raises:
        ValueError: ``root`` is not set or is not a folder, or there is no image below it.
    """

    named_by_folder = True

    def __init__(self, root: str | None, channels: int = 3) -> None:
        root = data_folder(root, "the folder of the images")
        if not Path(root).is_dir():
            raise ValueError(f"{root} is not a folder")
        self.mode = "L" if channels == 1 else "RGB"
        root = str(Path(root))

        def walk(tree_scan: TreeScan) -> Iterator[FolderFiles]:
            for folder, names in sort_by_path(walk_tree(root, tree_scan)):
                yield folder, -1, tree_scan.filter_images(names)

        self.samples, excluded = listed(root, "all images", walk)
        log_excluded(root, excluded)
        if not len(self.samples):
            raise ValueError(f"no image in {root} or its subfolders: expected files with {', '.join(IMAGE_SUFFIXES)}")

    @property
    def files(self) -> list[Path]:
        """A new list of the paths."""
        return [Path(path) for path, _ in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.path(index), self.mode), -1

    def path(self, index: int) -> str:
        return str(Path(self.samples[index][0]))

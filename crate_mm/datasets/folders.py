"""Images in folders: ImageNet's layout, a tree of your own, and images without labels."""

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mmengine.logging import print_log
from PIL import Image
from torchvision import datasets

from ..files import home
from ..registry import DATASETS
from ..untrusted import read_regular, shown
from .images import IMAGE_SUFFIXES, MOST_BYTES, open_image
from .names import readable_names, utf8_name
from .scan import find_splits, folders_below, folders_in, is_image, say_left_out


@DATASETS.register_module()
class ImageFolder(datasets.ImageFolder):
    """torchvision's, whose images are opened as all others are, and which counts an image once.

    torchvision follows links to folders without looking where they lead: one to the folder that it is in makes 41
    images of one. It takes hidden folders for classes and what macOS leaves beside images for images. Which files are
    images is ``scan``'s to say here; those that are left out are counted in the log.

    Args:
        root, kwargs: as for torchvision's.

    Raises:
        ValueError: a class's folder is another's, or holds the folder of all classes.
    """

    def __init__(self, root: str | Path, **kwargs) -> None:
        super().__init__(home(root), **{"loader": open_image, **kwargs})

    def path(self, index: int) -> str:
        return self.samples[index][0]

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""
        path, label = self.samples[index]
        return read_regular(path, MOST_BYTES), label

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        folders, files = folders_in(str(directory))
        if not folders:
            raise FileNotFoundError(f"no class folder is in {shown(directory)}")
        self.beside = sum(is_image(entry.name) for entry in files)
        root, seen = os.path.realpath(directory), {}
        for entry in folders:
            real = os.path.realpath(entry.path)
            if os.path.commonpath([root, real]) == real:
                raise ValueError(
                    f"{shown(directory)}: the class folder {shown(entry.name)} is a link to a folder above it"
                )
            if real in seen:
                raise ValueError(
                    f"{shown(directory)}: the class folders {shown(seen[real])} and {shown(entry.name)} are one"
                )
            seen[real] = entry.name
        return [utf8_name(entry.name) for entry in folders], {e.name: label for label, e in enumerate(folders)}

    def make_dataset(
        self,
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        valid = is_valid_file or is_image
        samples, left_out, owner = [], [], {os.path.realpath(directory): None}
        for name, label in sorted(class_to_idx.items()):
            for folder, files in folders_below(os.path.join(directory, name)):
                other = owner.setdefault(os.path.realpath(folder), name)
                if other is None:
                    continue  # a link back to the folder of all classes
                if other != name:
                    raise ValueError(
                        f"{shown(directory)}: by a link, the folder {shown(folder)} belongs to two classes, "
                        f"{shown(other)} and {shown(name)}: remove the link"
                    )
                for file in files:
                    samples.append((file, label)) if valid(file) else left_out.append(file)
        say_left_out(directory, left_out, self.beside)
        labels = {label for _, label in samples}
        empty = sorted(name for name, label in class_to_idx.items() if label not in labels)
        if empty and not allow_empty:
            raise FileNotFoundError(
                f"found no valid file for the classes {', '.join(map(shown, empty[:5]))} in {shown(directory)}, with "
                f"one of the suffixes {', '.join(IMAGE_SUFFIXES)}"
            )
        return samples


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
            found = ", ".join(sorted(shown(p.name) for p in Path(root).iterdir())[:5]) or "nothing"
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
                f"a folder {shown(next(iter(splits.values())).name)!r} and not the other split"
                if splits
                else "no split"
            )
            raise ValueError(
                f"data_root {root} has {has}: {expected}; divided=False in the dataset's source says that all are "
                "classes"
            )
        folder = (splits.get(split) or splits["test"]) if splits else root
        if splits and split == "val" and "val" not in splits:
            print_log(f"{root} has no folder for 'val': {shown(folder.name)} is taken", "current", logging.WARNING)
        try:
            super().__init__(folder)
        except FileNotFoundError as error:
            raise ValueError(f"data_root {root} is laid out wrongly: {expected}; {error}") from None
        if not splits:
            self.samples = self._share(split, val_fraction)
            self.targets = [label for _, label in self.samples]

    def _share(self, split: str, val_fraction: float) -> list[tuple[str, int]]:
        if not isinstance(val_fraction, float) or not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}")
        by_class: list[list] = [[] for _ in self.classes]
        for sample in self.samples:
            by_class[sample[1]].append(sample)
        kept = []
        for name, mine in zip(self.classes, by_class):
            if len(mine) < 2:
                raise ValueError(
                    f"class {shown(name)!r} of {self.root} has one image: it takes two to split off a val share"
                )
            train, val = split_positions(len(mine), val_fraction)
            kept += sorted(mine[position] for position in (train if split == "train" else val))
        return kept


@lru_cache(maxsize=1024)
def split_positions(size: int, val_fraction: float) -> tuple[list[int], list[int]]:
    """Which of so many images are for training and which are set aside, the same in every run."""
    from sklearn.model_selection import train_test_split

    return tuple(train_test_split(range(size), test_size=val_fraction, random_state=0))


@DATASETS.register_module()
class ImageFiles:
    """Every image below a folder, in the order of the paths, without labels: the label is -1.

    Which files are images is ``scan``'s to say; those that are left out are counted in the log.

    Args:
        root: the folder.
        channels: 3 for RGB images, 1 for gray ones.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """

    classes = None

    def __init__(self, root: str, channels: int = 3) -> None:
        root = home(root)
        if not Path(root).is_dir():
            raise ValueError(f"{root} is no folder")
        self.mode = "L" if channels == 1 else "RGB"
        files = [file for _, found in folders_below(root) for file in found]
        self.files = sorted(Path(file) for file in files if is_image(file))
        say_left_out(root, [file for file in files if not is_image(file)])
        if not self.files:
            raise ValueError(f"no image is below {root}: expected files with {', '.join(IMAGE_SUFFIXES)}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.files[index], self.mode), -1

    def path(self, index: int) -> str:
        return str(self.files[index])

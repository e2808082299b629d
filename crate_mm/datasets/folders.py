"""Images in folders: ImageNet's layout, a tree of your own, and images without labels."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image
from torchvision import datasets

from ..registry import DATASETS
from ..untrusted import read_regular, shown
from .images import MOST_BYTES, open_image
from .names import readable_names

IMAGE_SUFFIXES = datasets.folder.IMG_EXTENSIONS


@DATASETS.register_module()
class ImageFolder(datasets.ImageFolder):
    """torchvision's, whose images are opened as all others are, and which counts an image once.

    torchvision follows links to folders without looking where they lead: one to the folder that it is in makes 41
    images of one.

    Args:
        root, kwargs: as for torchvision's.

    Raises:
        ValueError: a class's folder is another's, or holds the folder of all classes.
    """

    def __init__(self, root: str | Path, **kwargs) -> None:
        super().__init__(str(root), **{"loader": open_image, **kwargs})

    def path(self, index: int) -> str:
        return self.samples[index][0]

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""
        path, label = self.samples[index]
        return read_regular(path, MOST_BYTES), label

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes, numbers = super().find_classes(directory)
        root, seen = os.path.realpath(directory), {}
        for name in classes:
            real = os.path.realpath(os.path.join(directory, name))
            if os.path.commonpath([root, real]) == real:
                raise ValueError(f"{shown(directory)}: the class folder {shown(name)} is a link to a folder above it")
            if real in seen:
                raise ValueError(f"{shown(directory)}: the class folders {shown(seen[real])} and {shown(name)} are one")
            seen[real] = name
        return classes, numbers

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        valid = is_valid_file or partial(datasets.folder.has_file_allowed_extension, extensions=extensions)
        samples, owner = [], {os.path.realpath(directory): None}
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
                samples += [(file, label) for file in files if valid(file)]
        labels = {label for _, label in samples}
        empty = sorted(name for name, label in class_to_idx.items() if label not in labels)
        if empty and not allow_empty:
            raise FileNotFoundError(
                f"found no valid file for the classes {', '.join(map(shown, empty[:5]))}, with one of the suffixes "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        return samples


def folders_below(top: str) -> list[tuple[str, list[str]]]:
    """A folder and all below it, each with its files, by their paths; links are followed, each folder is read once.

    A folder that is there and by a link too is taken where it is.
    """
    seen, found = set(), []
    folders, links = [top], []
    while folders or links:
        links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(entry.path)
                else:
                    names.append(entry.path)
        found.append((folder, sorted(names)))
    return sorted(found)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


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

        if root is not None and (Path(root) / split / INDEX).is_file():
            return PackedImages(root, split)
        return super().__new__(cls)

    def __init__(self, root: str | None, split: str = "train") -> None:
        expected = f"expected {root}/{split}/<class>/<image>.JPEG"
        if root is None:
            raise ValueError("data_root is not set: give the folder that holds train/ and val/")
        folder = Path(root) / split
        if not Path(root).is_dir():
            raise ValueError(f"data_root {root} is no folder: {expected}")
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

    Where ``root`` holds ``train/`` and ``val/``, these are the splits. Otherwise ``root`` holds the class folders, and
    a share of each class, the same in every run, is set aside as 'val'.

    Args:
        root: the folder that holds the split folders or the class folders.
        split: 'train' or 'val'.
        val_fraction: the share set aside, where there are no split folders.

    Raises:
        ValueError: unknown ``split``, the folder is missing or empty, or a class is too small to be split.
    """

    def __init__(self, root: str | None, split: str = "train", val_fraction: float = 0.2) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"unknown split {split!r}: choose train, val")
        expected = f"expected {root}/<class>/<image> or {root}/{{train,val}}/<class>/<image>"
        if root is None or not Path(root).is_dir():
            raise ValueError(f"data_root {'is not set' if root is None else f'{root} is no folder'}: {expected}")
        divided = [name for name in ("train", "val") if (Path(root) / name).is_dir()]
        if len(divided) == 1:
            raise ValueError(f"data_root {root} has a folder {divided[0]!r} and not the other split: {expected}")
        try:
            super().__init__(Path(root) / split if divided else root)
        except FileNotFoundError as error:
            raise ValueError(f"data_root {root} is laid out wrongly: {expected}; {error}") from None
        if not divided:
            self.samples = self._share(split, val_fraction)
            self.targets = [label for _, label in self.samples]

    def _share(self, split: str, val_fraction: float) -> list[tuple[str, int]]:
        from sklearn.model_selection import train_test_split

        if not isinstance(val_fraction, float) or not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}")
        kept = []
        for label, name in enumerate(self.classes):
            mine = [sample for sample in self.samples if sample[1] == label]
            if len(mine) < 2:
                raise ValueError(f"class {name!r} of {self.root} has one image: it takes two to split off a val share")
            train, val = train_test_split(mine, test_size=val_fraction, random_state=0)
            kept += sorted(train if split == "train" else val)
        return kept


@DATASETS.register_module()
class ImageFiles:
    """Every image below a folder, in the order of the paths, without labels: the label is -1.

    Args:
        root: the folder.
        channels: 3 for RGB images, 1 for gray ones.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """

    classes = None

    def __init__(self, root: str, channels: int = 3) -> None:
        if not Path(root).is_dir():
            raise ValueError(f"{root} is no folder")
        self.mode = "L" if channels == 1 else "RGB"
        self.files = sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not self.files:
            raise ValueError(f"no image is below {root}: expected files with {', '.join(IMAGE_SUFFIXES)}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.files[index], self.mode), -1

    def path(self, index: int) -> str:
        return str(self.files[index])

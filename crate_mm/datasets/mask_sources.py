"""Images with masks in folders: your own, ADE20K, PASCAL VOC and Cityscapes. Nothing is downloaded."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from ..io.files import home
from ..io.untrusted import read_regular, sanitized
from ..registry import DATASETS
from .base import IGNORED_PIXEL, data_folder
from .folders import split_positions
from .masks import MaskSource
from .scan import find_splits, is_image, list_dir

MAX_NAMED = 3
MAX_NAMES_BYTES = 2**20


class _Pairs(MaskSource):
    """Images and masks as two lists of files."""

    images: list[str]
    masks: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images[index]

    def mask_path(self, index: int) -> str:
        return self.masks[index]


def pair_files(images: Path, masks: Path) -> tuple[list[str], list[str]]:
    """Return the images of a folder, sorted by name, and their masks: PNG files of the same stems in another folder.

    Raises:
        ValueError: a folder does not exist, there is no image, two images share a stem, or an image has no mask.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise ValueError(
                f"{sanitized(folder)} is not a folder: expected images in {sanitized(images)} and masks in "
                f"{sanitized(masks)}"
            )
    names = [entry.name for entry in list_dir(str(images))[1] if is_image(entry.name)]
    if not names:
        raise ValueError(f"no image in {sanitized(images)}")
    stems = [os.path.splitext(name)[0] for name in names]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(f"{sanitized(images)} has several images called {_listed(twice)}: each needs its own mask")
    known = {entry.name for entry in list_dir(str(masks))[1]}
    missing = [name for name, stem in zip(names, stems) if f"{stem}.png" not in known]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images in {sanitized(images)} have no mask: expected a PNG of the same "
            f"name in {sanitized(masks)} for {_listed(missing)}"
        )
    return [str(images / name) for name in names], [str(masks / f"{stem}.png") for stem in stems]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(map(sanitized, names[:MAX_NAMED]))}{more}"


@DATASETS.register_module()
class MaskFolders(_Pairs):
    """Your own images and masks: ``root/images/`` and ``root/masks/`` with the same file names, masks as PNG.

    The masks hold labels from 0, and 255 for ignored pixels. If both folders have subfolders ``train`` and ``val``,
    these are the splits; otherwise a fraction of the images is held out as 'val', the same in every run.

    Args:
        root: the folder that holds ``images`` and ``masks``.
        split: 'train' or 'val'.
        classes: names of the classes in the order of the labels (default: the lines of ``root/classes.txt``).
        val_fraction: the fraction to hold out if there are no split folders.

    Raises:
        ValueError: a folder is missing, an image has no mask, or the classes are unknown.
    """

    named_by_folder = True

    def __init__(
        self, root: str | None, split: str = "train", classes: Iterable[str] | None = None, val_fraction: float = 0.2
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"unknown split {split!r}: choose train, val")
        if root is None or not Path(home(root)).is_dir():
            text = "is not set" if root is None else f"{sanitized(root)} is not a folder"
            raise ValueError(f"data_root {text}: expected a folder with images/ and masks/")
        folder = Path(home(root))
        self.classes = _class_names(folder / "classes.txt") if classes is None else [str(name) for name in classes]
        images, masks = folder / "images", folder / "masks"
        splits = find_splits(images) if images.is_dir() else {}
        if splits:
            if split not in splits:
                raise ValueError(f"{sanitized(images)} has no folder {split!r}, only {', '.join(sorted(splits))}")
            images, masks = splits[split], masks / splits[split].name
        self.images, self.masks = pair_files(images, masks)
        if not splits:
            if not isinstance(val_fraction, float) or not 0 < val_fraction < 1 or len(self.images) < 2:
                raise ValueError(
                    f"a split of {len(self.images)} images into train and val needs two images or more, and a "
                    f"val_fraction between 0 and 1, got {val_fraction!r}"
                )
            positions = sorted(split_positions(len(self.images), val_fraction)[split == "val"])
            self.images, self.masks = ([files[i] for i in positions] for files in (self.images, self.masks))


def _class_names(file: Path) -> list[str]:
    """Return the nonempty lines of a file."""
    if not file.is_file():
        raise ValueError(
            f"the classes are unknown: write their names to {sanitized(file)}, one per line in label order, "
            "or set classes=[...] in the dataset's source"
        )
    names = read_regular(file, MAX_NAMES_BYTES).decode("utf-8-sig", "replace").splitlines()
    return [name.strip() for name in names if name.strip()]


@DATASETS.register_module()
class ADE20K(_Pairs):
    """ADE20K of the scene parsing benchmark: 20,210 training and 2,000 validation images, 150 classes.

    The layout is that of the published archive: ``root/ADEChallengeData2016/`` with ``images`` and ``annotations``,
    ``training`` and ``validation`` in both, and ``objectInfo150.txt``. In masks, 0 means ignored and 1 means class 0.

    Args:
        root: the folder that contains ``ADEChallengeData2016``.
        split: 'train' or 'val'.

    Raises:
        ValueError: unknown ``split``, or a folder, ``objectInfo150.txt`` or a mask is missing.
    """

    first_label = 1

    def __init__(self, root: str | None, split: str = "train") -> None:
        folders = {"train": "training", "val": "validation"}
        if split not in folders:
            raise ValueError(f"unknown split {split!r}: choose train, val")
        base = Path(data_folder(root, "the folder that holds ADEChallengeData2016/")) / "ADEChallengeData2016"
        names = base / "objectInfo150.txt"
        if not names.is_file():
            raise ValueError(
                f"{sanitized(base)} is not an unpacked ADEChallengeData2016.zip: expected images/, annotations/ and "
                "objectInfo150.txt"
            )
        rows = [line.split("\t") for line in read_regular(names, MAX_NAMES_BYTES).decode().splitlines()[1:] if line]
        self.classes = [row[-1].partition(",")[0].strip() for row in rows]
        self.images, self.masks = pair_files(base / "images" / folders[split], base / "annotations" / folders[split])


@DATASETS.register_module()
class VOCSegmentation(_Pairs):
    """PASCAL VOC segmentation, read by torchvision from ``root/VOCdevkit/VOC2012/``: 20 classes and the background.

    Args:
        root: the folder that contains ``VOCdevkit``.
        split: 'train', 'val' or 'trainval'.
        year: year of the challenge.

    Raises:
        ValueError: the data or the split are missing.
    """

    classes = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip

    def __init__(self, root: str | None, split: str = "train", year: str = "2012") -> None:
        reader = _open("VOCSegmentation", "VOCdevkit/", datasets.VOCSegmentation, root, image_set=split, year=year)
        self.images, self.masks = list(reader.images), list(reader.masks)


CITYSCAPES = datasets.Cityscapes.classes


@DATASETS.register_module()
class Cityscapes(_Pairs):
    """Cityscapes, read by torchvision: ``root/leftImg8bit/`` and ``root/gtFine/`` with ``*_gtFine_labelIds.png``.

    The classes are the 19 of the evaluation; pixels of other classes are ignored. Images are sorted by path.

    Args:
        root: the folder that contains ``leftImg8bit`` and ``gtFine``.
        split: 'train' or 'val'.

    Raises:
        ValueError: the data or the split are missing.
    """

    classes = tuple(kind.name for kind in CITYSCAPES if 0 <= kind.train_id < IGNORED_PIXEL)

    def __init__(self, root: str | None, split: str = "train") -> None:
        arguments = {"split": split, "target_type": "semantic"}
        reader = _open("Cityscapes", "leftImg8bit/ and gtFine/", datasets.Cityscapes, root, **arguments)
        pairs = sorted((image, mask) for image, (mask,) in zip(reader.images, reader.targets))
        self.images, self.masks = map(list, zip(*pairs))

    def labels_of(self, values: np.ndarray) -> np.ndarray:
        train_ids = np.full(2**16, IGNORED_PIXEL, np.int64)
        for kind in CITYSCAPES:
            if kind.id >= 0 and 0 <= kind.train_id < IGNORED_PIXEL:
                train_ids[kind.id] = kind.train_id
        return train_ids[values]


def _open(name: str, content: str, reader: type, root: str | None, **arguments: Any) -> Any:
    """Build torchvision's reader; raise ``ValueError`` if data are missing."""
    folder = data_folder(root, f"the folder that holds {name}'s {content}")
    try:
        return reader(folder, **arguments)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(
            f"{name} is missing or incomplete in data_root {sanitized(root)}: expected {content} with the split "
            f"{arguments.get('split', arguments.get('image_set'))!r} ({sanitized(error)})"
        ) from None

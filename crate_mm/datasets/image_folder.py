"""One folder per class: torchvision's ImageFolder without stray files, hidden folders and link cycles."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchvision import datasets

from ..io.untrusted import read_regular, sanitized
from ..registry import DATASETS
from .base import Source, data_folder
from .cached_listing import listed
from .images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, open_image
from .listing import FolderFiles, Labels, Listing
from .names import utf8_name
from .scan import TreeScan, is_image, list_dir, log_excluded, walk_tree


@DATASETS.register_module()
class ImageFolder(datasets.ImageFolder, Source):
    """torchvision's ``ImageFolder`` that opens images with ``open_image`` and lists each image once.

    torchvision follows links to folders without cycle detection: if a folder contains a link to itself, each image is
    listed 41 times. torchvision also treats hidden folders as classes and macOS's metadata files as images. Here,
    ``scan`` decides which files are images, and excluded files are counted in the log.

    Args:
        root: the folder that holds the class folders.

    Attributes:
        samples: read-only sequence of (path, label), shared by the processes of a machine (``cached_listing``).
        imgs: the same sequence.
        targets: the labels, a read-only sequence.

    Raises:
        ValueError: ``root`` is not set, a folder belongs to two classes, or a class folder links to a parent folder.
    """

    encoded = True

    def __init__(self, root: str | Path | None) -> None:
        root = data_folder(root, "the folder that holds the class folders")
        datasets.VisionDataset.__init__(self, root)  # ImageFolder.__init__ would make a list of the labels
        self.loader, self.extensions = open_image, IMAGE_SUFFIXES
        self.classes, self.class_to_idx = self.find_classes(self.root)
        self._set_samples(self.make_dataset(self.root, self.class_to_idx))

    def _set_samples(self, samples: Sequence[tuple[str, int]]) -> None:
        self.samples = self.imgs = samples
        self.targets = Labels(samples) if isinstance(samples, Listing) else [label for _, label in samples]

    def path(self, index: int) -> str:
        return self.samples[index][0]

    def read(self, index: int) -> tuple[bytes, int]:
        path, label = self.samples[index]
        return read_regular(path, MAX_IMAGE_BYTES), label

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        folders, files = list_dir(str(directory))
        if not folders:
            raise FileNotFoundError(f"{sanitized(directory)} contains no class folder")
        self.stray_images = sum(is_image(entry.name) for entry in files)
        root, names = os.path.realpath(directory), {}
        for entry in folders:
            real = os.path.realpath(entry.path)
            if os.path.commonpath([root, real]) == real:
                raise ValueError(
                    f"{sanitized(directory)}: the class folder {sanitized(entry.name)} is a link to a parent folder"
                )
            if real in names:
                raise ValueError(
                    f"{sanitized(directory)}: the class folders {sanitized(names[real])} and {sanitized(entry.name)} "
                    "are the same folder"
                )
            names[real] = entry.name
        return [utf8_name(entry.name) for entry in folders], {e.name: label for label, e in enumerate(folders)}

    def make_dataset(self, directory: str, class_to_idx: dict[str, int]) -> Listing:
        def walk(tree_scan: TreeScan) -> Iterator[FolderFiles]:
            owner = {os.path.realpath(directory): None}
            for name, label in sorted(class_to_idx.items()):
                for folder, files in walk_tree(os.path.join(directory, name), tree_scan):
                    previous = owner.setdefault(os.path.realpath(folder), name)
                    if previous is None:
                        continue  # a link back to the folder of all classes
                    if previous != name:
                        raise ValueError(
                            f"{sanitized(directory)}: a link makes the folder {sanitized(folder)} belong to two "
                            f"classes, {sanitized(previous)} and {sanitized(name)}: remove the link"
                        )
                    yield folder, label, tree_scan.filter_images(files)

        listing, excluded = listed(directory, sorted(class_to_idx.items()), walk)
        log_excluded(directory, excluded, self.stray_images)
        labels = set(listing.columns["labels"].tolist())
        empty = sorted(name for name, label in class_to_idx.items() if label not in labels)
        if empty:
            raise FileNotFoundError(
                f"no image of the classes {', '.join(map(sanitized, empty[:5]))} in {sanitized(directory)}: expected "
                f"files with {', '.join(IMAGE_SUFFIXES)}"
            )
        return listing

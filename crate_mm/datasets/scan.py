"""Which files of a folder are images: one answer for training, testing, prediction and packing."""

import logging
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ..io.log import print_log
from ..io.untrusted import sanitized
from .images import IMAGE_SUFFIXES

# What systems, file managers and editors leave in folders, beside all names that begin with a dot.
IGNORED_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin"}
IGNORED_NAMES |= {"system volume information", "lost+found", "__pycache__"}

# What folders of splits are called, in any case.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
MAX_EXTENSIONS = 6


def is_ignored(name: str) -> bool:
    """Whether a file or folder is one that the system, a file manager or an editor has left."""
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def is_image(name: str) -> bool:
    """Whether a file's ending, in any case, is one of an image that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_dir(folder: str) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
    """The folders in a folder and the other files, each in the order of the names, without leftovers."""
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not is_ignored(entry.name)), key=lambda entry: entry.name)
    sorted_out: tuple[list, list] = ([], [])
    for entry in found:
        sorted_out[not _is_folder(entry)].append(entry)
    return sorted_out


class TreeScan:
    """What a reading of a tree has seen: the folders, as they were just before, and files that are no images."""

    def __init__(self) -> None:
        self.folders: list[tuple[str, os.stat_result]] = []
        self.excluded: Counter[str] = Counter()  # endings

    def filter_images(self, names: Iterable[str], valid: Callable[[str], bool] = is_image) -> list[str]:
        """Those of the names that are images'; the others are counted."""
        images = []
        for name in names:
            if valid(name):
                images.append(name)
            else:
                self.excluded[os.path.splitext(name)[1].lower() or "no ending"] += 1
        return images


def walk_tree(top: str, walk: TreeScan | None = None) -> list[tuple[str, list[str]]]:
    """A folder and all below it, by their paths, each with the sorted names of its files.

    Links are followed, and each folder is read once: where a folder is there and by a link too, where it is. Leftovers
    are not among them.

    Args:
        walk: notes the folders.
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
        if walk is not None:
            walk.folders.append((folder, os.stat(folder)))
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_ignored(entry.name):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(entry.path)
                else:
                    names.append(entry.name)
        found.append((folder, sorted(names)))
    return sorted(found)


def sort_by_path(found: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Folders with their files, in pieces that make the order of all files that of ``sorted(map(Path, files))``.

    A folder's files come in several pieces where folders in it come between them.
    """
    below: dict[str, list[str]] = {folder: [] for folder, _ in found}
    for folder in below:
        above, name = os.path.split(folder)
        if above in below and above != folder:
            below[above].append(name)
    pieces = []
    for folder, names in found:
        parts, begin = Path(folder).parts, 0
        key = parts
        for name in sorted(below[folder]):
            end = bisect_left(names, name)
            pieces.append((key, folder, names[begin:end]))
            key, begin = (*parts, f"{name}\0"), end  # behind all that is in that folder
        pieces.append((key, folder, names[begin:]))
    return [(folder, names) for _, folder, names in sorted(pieces)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def log_excluded(folder: str | Path, endings: Counter[str], stray_images: int = 0) -> None:
    """Say in one line how many files of which endings are no images that are read.

    Args:
        folder: where they are.
        endings: how many there are of each ending.
        beside: how many images lie beside the folders of the classes, so that their class is not known.
    """
    said = []
    if endings:
        most = [f"{count} of {sanitized(ending)}" for ending, count in endings.most_common(MAX_EXTENSIONS)]
        more = sum(endings.values()) - sum(count for _, count in endings.most_common(MAX_EXTENSIONS))
        said.append(f"{sum(endings.values())} files with other endings than images ({', '.join(most)}")
        said[-1] += f" and {more} of others)" if more else ")"
    if stray_images:
        said.append(f"{stray_images} images that lie beside the folders of the classes")
    if said:
        print_log(f"{sanitized(folder)}: left out are {' and '.join(said)}", logger="current", level=logging.WARNING)


def find_splits(root: str | Path) -> dict[str, Path]:
    """The folders of 'train', 'val' and 'test' in a folder, as far as they are there, by their common names.

    One of exactly that name is taken before any other.

    Raises:
        ValueError: two folders have other names of the same split.
    """
    folders = {entry.name: Path(entry.path) for entry in list_dir(str(root))[0]}
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        named = [split] if split in folders else [name for name in folders if name.lower() in names]
        if len(named) > 1:
            raise ValueError(
                f"{sanitized(root)} has {len(named)} folders for the split {split!r}, {', '.join(map(sanitized, named))}: "
                f"rename the right one to {split!r}"
            )
        if named:
            found[split] = folders[named[0]]
    return found

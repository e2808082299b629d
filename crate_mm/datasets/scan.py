"""Find the images of a folder, by the same rules for training, testing, prediction and packing."""

import logging
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..io.log import print_log
from ..io.untrusted import sanitized
from .images import IMAGE_SUFFIXES

# Files and folders made by systems, file managers and editors. Names that begin with a dot are ignored too.
IGNORED_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin"}
IGNORED_NAMES |= {"system volume information", "lost+found", "__pycache__"}

# Names of split folders, in upper or lower case.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
MAX_EXTENSIONS = 6


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden or in ``IGNORED_NAMES``."""
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def is_image(name: str) -> bool:
    """Return whether a file's extension, in upper or lower case, is that of a supported image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_dir(folder: str) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
    """Return the subfolders and the files of a folder, both sorted by name and without ignored names."""
    with os.scandir(folder) as entries:
        entries = sorted((entry for entry in entries if not is_ignored(entry.name)), key=lambda entry: entry.name)
    result: tuple[list, list] = ([], [])
    for entry in entries:
        result[not _is_folder(entry)].append(entry)
    return result


class TreeScan:
    """Record of a tree scan: the folders, with their status before they were read, and the excluded files."""

    def __init__(self) -> None:
        self.folders: list[tuple[str, os.stat_result]] = []
        self.excluded: Counter[str] = Counter()  # by extension

    def filter_images(self, names: Iterable[str]) -> list[str]:
        """Return the names that are images; count the others."""
        images = []
        for name in names:
            if is_image(name):
                images.append(name)
            else:
                self.excluded[os.path.splitext(name)[1].lower() or "no extension"] += 1
        return images


def walk_tree(top: str, tree_scan: TreeScan | None = None) -> list[tuple[str, list[str]]]:
    """Return a folder and all folders below it, sorted by path, each with the sorted names of its files.

    Links are followed. Each folder is read once, at its own path even if links lead to it. Ignored files and folders
    are omitted.

    Args:
        tree_scan: records the folders.
    """
    visited, result = set(), []

    folders, links = [top], []
    while folders or links:
        links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        if tree_scan is not None:
            tree_scan.folders.append((folder, os.stat(folder)))
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_ignored(entry.name):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(entry.path)
                else:
                    names.append(entry.name)
        result.append((folder, sorted(names)))
    return sorted(result)


def sort_by_path(folders: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Split and sort folders with their files so that all files are in the order of ``sorted(map(Path, files))``.

    A folder's files are split into several pieces if subfolders sort between them.
    """
    below: dict[str, list[str]] = {folder: [] for folder, _ in folders}
    for folder in below:
        above, name = os.path.split(folder)
        if above in below and above != folder:
            below[above].append(name)
    pieces = []
    for folder, names in folders:
        parts, begin = Path(folder).parts, 0
        key = parts
        for name in sorted(below[folder]):
            end = bisect_left(names, name)
            pieces.append((key, folder, names[begin:end]))
            key, begin = (*parts, f"{name}\0"), end  # after everything in that subfolder
        pieces.append((key, folder, names[begin:]))
    return [(folder, names) for _, folder, names in sorted(pieces)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def log_excluded(folder: str | Path, extensions: Counter[str], stray_images: int = 0) -> None:
    """Log the number of excluded files in one line.

    Args:
        folder: the scanned folder.
        extensions: number of excluded files by extension.
        stray_images: number of images outside the class folders; their class is unknown.
    """
    parts = []
    if extensions:
        common = extensions.most_common(MAX_EXTENSIONS)
        rest = extensions.total() - sum(count for _, count in common)
        listed = ", ".join(f"{count} {sanitized(extension)}" for extension, count in common)
        parts.append(f"{extensions.total()} files that are not images ({listed}{f', {rest} others' if rest else ''})")
    if stray_images:
        parts.append(f"{stray_images} images outside the class folders")
    if parts:
        print_log(f"{sanitized(folder)}: excluded {' and '.join(parts)}", logger="current", level=logging.WARNING)


def find_splits(root: str | Path) -> dict[str, Path]:
    """Return the existing split folders in a folder, by split: 'train', 'val', 'test'.

    A folder named exactly like the split takes precedence over folders with alternative names.

    Raises:
        ValueError: several folders have alternative names of the same split.
    """
    folders = {entry.name: Path(entry.path) for entry in list_dir(str(root))[0]}
    result: dict[str, Path] = {}
    for split, names in SPLITS.items():
        matches = [split] if split in folders else [name for name in folders if name.lower() in names]
        if len(matches) > 1:
            raise ValueError(
                f"{sanitized(root)} has {len(matches)} folders for the split {split!r}, "
                f"{', '.join(map(sanitized, matches))}: rename the right one to {split!r}"
            )
        if matches:
            result[split] = folders[matches[0]]
    return result

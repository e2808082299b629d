"""Which files of a folder are images: one answer for training, testing, prediction and packing."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mmengine.logging import print_log

from ..untrusted import shown
from .images import IMAGE_SUFFIXES

# What systems, file managers and editors leave in folders, beside all names that begin with a dot.
LEFTOVERS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin"}
LEFTOVERS |= {"system volume information", "lost+found", "__pycache__"}

# What folders of splits are called, in any case.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
MOST_ENDINGS = 6


def is_leftover(name: str) -> bool:
    """Whether a file or folder is one that the system, a file manager or an editor has left."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def is_image(name: str) -> bool:
    """Whether a file's ending, in any case, is one of an image that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def folders_in(folder: str) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
    """The folders in a folder and the other files, each in the order of the names, without leftovers."""
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not is_leftover(entry.name)), key=lambda entry: entry.name)
    sorted_out: tuple[list, list] = ([], [])
    for entry in found:
        sorted_out[not _is_folder(entry)].append(entry)
    return sorted_out


def folders_below(top: str) -> list[tuple[str, list[str]]]:
    """A folder and all below it, each with its files, by their paths; links are followed, each folder is read once.

    A folder that is there and by a link too is taken where it is. Leftovers are not among them.
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
                if is_leftover(entry.name):
                    continue
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


def say_left_out(folder: str | Path, files: Iterable[str], beside: int = 0) -> None:
    """Say in one line how many files of which endings are no images that are read.

    Args:
        folder: where they are.
        files: their paths.
        beside: how many images lie beside the folders of the classes, so that their class is not known.
    """
    said = []
    endings = Counter(os.path.splitext(file)[1].lower() or "no ending" for file in files)
    if endings:
        most = [f"{count} of {shown(ending)}" for ending, count in endings.most_common(MOST_ENDINGS)]
        more = sum(endings.values()) - sum(count for _, count in endings.most_common(MOST_ENDINGS))
        said.append(f"{sum(endings.values())} files with other endings than images ({', '.join(most)}")
        said[-1] += f" and {more} of others)" if more else ")"
    if beside:
        said.append(f"{beside} images that lie beside the folders of the classes")
    if said:
        print_log(f"{shown(folder)}: left out are {' and '.join(said)}", logger="current", level=logging.WARNING)


def find_splits(root: str | Path) -> dict[str, Path]:
    """The folders of 'train', 'val' and 'test' in a folder, as far as they are there, by their common names.

    One of exactly that name is taken before any other.

    Raises:
        ValueError: two folders have other names of the same split.
    """
    folders = {entry.name: Path(entry.path) for entry in folders_in(str(root))[0]}
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        named = [split] if split in folders else [name for name in folders if name.lower() in names]
        if len(named) > 1:
            raise ValueError(
                f"{shown(root)} has {len(named)} folders for the split {split!r}, {', '.join(map(shown, named))}: "
                f"rename the right one to {split!r}"
            )
        if named:
            found[split] = folders[named[0]]
    return found

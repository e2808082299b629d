"""What is in a folder of images, or in any source: splits, classes, counts, and images that are odd.

A finding is a triple: 'ok', 'note' or 'fault', a topic, a text. A fault is what will not work.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..io.files import home
from ..io.untrusted import sanitized
from .base import Source, source_of
from .folders import ImageFolder
from .images import UnreadableImageError, open_image
from .packed import INDEX, PackedImages
from .scan import find_splits, list_dir, is_image, walk_tree

TINY = 32  # pixels of the shorter side
MAX_NAMED = 5
UPRIGHT = 1  # of EXIF's orientation, whose tag is the next
ORIENTATION = 0x0112
MAX_UNREADABLE = 100  # what ClassificationDataset lets pass
Finding = tuple[str, str, str]


class ImageRecord(NamedTuple):
    """What was seen of an image."""

    split: str
    path: str
    label: int
    error: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = UPRIGHT
    digest: bytes = b""


def open_root(root: str | Path) -> dict[str, Source]:
    """The sources of a folder by their splits: packed images, split folders, or class folders, as 'all'.

    Raises:
        ValueError: there is no such folder, or no images in it.
    """
    root = Path(home(root))
    if not root.is_dir():
        raise ValueError(f"{sanitized(root)} is no folder")
    packed = [split for split in ("train", "val", "test") if (root / split / INDEX).is_file()]
    try:
        if packed:
            return {split: PackedImages(str(root), split) for split in packed}
        return {split: ImageFolder(folder) for split, folder in (find_splits(root) or {"all": root}).items()}
    except FileNotFoundError as error:
        raise ValueError(f"{sanitized(root)}: {error}") from None


def check_sources(sources: Mapping[str, Any], sample: int | None = 200) -> Iterator[Finding]:
    """Look at sources of data, as in ``sources``.

    Args:
        sources: by split.
        sample: how many images of each split are read; all if None.
    """
    sources = {split: source_of(source) for split, source in sources.items()}
    for split, source in sources.items():
        yield from _count(split, source)
    yield from _compare_classes(sources)
    images = {}
    for split, source in sources.items():
        if (kind := _kind_of_another(source)) is None:
            images[split] = source
        else:
            text = f"{source.name} gives {kind}, no pairs (image, label): its samples are not looked at"
            yield "note", split, text
    samples = [one for split, source in images.items() for one in _look(split, source, sample)]
    if samples:
        whole = sum(len(source) for source in images.values())
        yield "ok", "read", f"{len(samples)} of {whole} images{' (--all reads all)' if len(samples) < whole else ''}"
        yield from _oddities(samples, whole)


def _count(split: str, source: Source) -> Iterator[Finding]:
    classes, labels = source.classes, source.targets
    text = f"{len(source)} images" + (f" in {len(classes)} classes" if classes is not None else "")
    yield "ok" if len(source) else "fault", split, text
    if classes is not None and labels is not None and len(source):
        counts = np.bincount(np.asarray(labels, np.int64), minlength=len(classes))
        few, many = int(counts.argmin()), int(counts.argmax())
        text = f"from {counts[few]} images ({sanitized(classes[few])}) to {counts[many]} ({sanitized(classes[many])})"
        text = f"{counts[few]} images of each" if counts[few] == counts[many] else text
        empty = [sanitized(classes[label]) for label in np.flatnonzero(counts == 0)[:MAX_NAMED]]
        yield "note" if counts[few] < 2 else "ok", f"{split}, classes", text
        if empty:
            yield "note", f"{split}, classes", f"{int((counts == 0).sum())} have no image: {', '.join(empty)}"
    if isinstance(source, ImageFolder):
        yield from _depth(split, str(source.root))
        files = [file for _, found in walk_tree(str(source.root)) for file in found if not is_image(file)]
        endings = Counter(os.path.splitext(file)[1].lower() or "no ending" for file in files).most_common(MAX_NAMED)
        if files:
            most = ", ".join(f"{count} of {sanitized(ending)}" for ending, count in endings)
            yield "note", f"{split}, left out", f"{len(files)} files with other endings than images: {most}"


def _kind_of_another(source: Source) -> str | None:
    """Name the type of a user's samples where they are not pairs (image, label); else return None."""
    if source.encoded or not len(source):
        return None
    try:
        sample = source[0]
    except Exception:  # anything, which is told of each sample
        return None
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        return None if isinstance(sample[0], Image.Image) else f"pairs of {type(sample[0]).__name__}"
    return type(sample).__name__


def _depth(split: str, root: str) -> Iterator[Finding]:
    """Report a folder that lies above the folder of the classes, as unpacked archives have it.

    It would be read as one class, whose folder holds folders and no image.
    """
    folder, steps = root, 0
    while True:
        folders, files = list_dir(folder)
        if any(is_image(file.name) for file in files):
            return
        if len(folders) != 1:
            break
        folder, steps = folders[0].path, steps + 1
    if steps and folders:
        text = f"the only one, {sanitized(os.path.relpath(folder, root))}, holds {len(folders)} folders and no image"
        yield "fault", f"{split}, classes", f"{text}: give {sanitized(folder)} as the folder of the data"


def _compare_classes(sources: Mapping[str, Source]) -> Iterator[Finding]:
    named = {split: list(source.classes) for split, source in sources.items() if source.classes}
    if len(named) < 2:
        return
    (first, classes), *others = named.items()
    for split, theirs in others:
        if theirs == classes:
            continue
        only = {first: sorted({*classes} - {*theirs}), split: sorted({*theirs} - {*classes})}
        told = [
            f"{', '.join(map(sanitized, names[:MAX_NAMED]))} only in {where}" for where, names in only.items() if names
        ]
        yield "fault", "classes", f"those of {split} are not those of {first}: {'; '.join(told) or 'another order'}"


def _look(split: str, source: Source, sample: int | None) -> Iterator[ImageRecord]:
    positions: Sequence[int] = range(len(source))
    if sample is not None and sample < len(source):
        positions = sorted(np.random.default_rng(0).choice(len(source), sample, replace=False).tolist())
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # decoding leaves Python's lock to others
        for start in range(0, len(positions), 1024):  # a task waits for each image that is asked for
            part = positions[start : start + 1024]
            yield from pool.map(lambda position: _look_at(split, source, position), part)


def _look_at(split: str, source: Source, position: int) -> ImageRecord:
    path, label = source.path(position), -1
    try:
        if not source.encoded:
            image, label = source[position]
            digest = hashlib.sha256(np.asarray(image).tobytes()).digest()
            return ImageRecord(split, path, label, "", image.size, image.mode, UPRIGHT, digest)
        data, label = source.read(position)
        image = open_image(data, mode=None)
        orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    except UnreadableImageError as error:
        return ImageRecord(split, path, label, str(error))
    except Exception as error:  # of a source of another's, anything
        return ImageRecord(split, path, label, str(error) or type(error).__name__)
    return ImageRecord(split, path, label, "", image.size, image.mode, orientation, hashlib.sha256(data).digest())


def _oddities(looked: list[ImageRecord], whole: int) -> Iterator[Finding]:
    broken = [one for one in looked if one.error]
    good = [one for one in looked if not one.error]
    if broken:
        expected = len(broken) * whole / len(looked)
        level = "fault" if not good or expected > MAX_UNREADABLE else "note"
        advice = f"; a run stops at more than {MAX_UNREADABLE}" if level == "fault" else ""
        yield (
            level,
            "broken",
            _named(broken, lambda one: f"{sanitized(one.path)} ({sanitized(one.error, 100)})") + advice,
        )
    else:
        yield "ok", "broken", "none"
    if good:
        sides = [min(one.size) for one in good]
        widths, heights = zip(*(one.size for one in good))
        middle = f"{int(np.median(widths))} x {int(np.median(heights))}"
        yield "ok", "size", f"shorter side from {min(sides)} to {max(sides)} pixels, {middle} in the middle"
    tiny = [one for one in good if min(one.size) < TINY]
    if tiny:
        yield "note", "tiny", f"shorter side below {TINY} pixels: {_named(tiny)}"
    modes = Counter(one.mode for one in good)
    if modes.keys() - {"RGB"}:
        yield "ok", "colours", ", ".join(f"{count} of {mode}" for mode, count in modes.most_common()) + "; converted"
    turned = [one for one in good if one.orientation != UPRIGHT]
    if turned:
        yield "note", "orientation", f"EXIF turns them, pixels are taken as they lie: {_named(turned)}"
    yield from _duplicates(good)


def _duplicates(good: list[ImageRecord]) -> Iterator[Finding]:
    same: dict[bytes, list[ImageRecord]] = defaultdict(list)
    for one in good:
        same[one.digest].append(one)
    groups = [group for group in same.values() if len(group) > 1]
    across = [group for group in groups if len({one.split for one in group}) > 1]
    torn = [group for group in groups if len({one.label for one in group}) > 1]

    def pairs(found: list[list[ImageRecord]]) -> str:
        told = [" = ".join(sanitized(one.path) for one in group[:3]) for group in found[:MAX_NAMED]]
        return f"{len(found)}: {'; '.join(told)}"

    if across:
        yield "note", "in several splits", f"the same file, {pairs(across)}"
    if torn:
        yield "note", "in several classes", f"the same file, {pairs(torn)}"
    rest = sum(len(group) - 1 for group in groups)
    yield "note" if rest else "ok", "duplicates", f"{rest or 'none'} among those that were read"


def _named(found: list[ImageRecord], say=lambda one: sanitized(one.path)) -> str:
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return f"{len(found)}: {', '.join(map(say, found[:MAX_NAMED]))}{more}"

"""Check a folder of images, or any source: splits, classes, counts, masks and unusual images.

A finding is a triple: level ('ok', 'note' or 'fault'), topic, text. A fault prevents training.
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

from ..datasets.base import Source, source_of
from ..datasets.folders import ImageFolder
from ..datasets.images import UnreadableImageError, open_image
from ..datasets.mask_sources import MaskFolders
from ..datasets.packed import INDEX, PackedImages
from ..datasets.scan import find_splits, is_image, list_dir, walk_tree
from ..io.files import home
from ..io.untrusted import sanitized

TINY = 32  # pixels of the shorter side
MAX_NAMED = 5
ORIENTATION = 0x0112  # tag of EXIF's orientation
UPRIGHT = 1  # value of EXIF's orientation
MAX_UNREADABLE = 100  # default of ClassificationDataset
Finding = tuple[str, str, str]


class ImageRecord(NamedTuple):
    """Properties of an image that was read."""

    split: str
    path: str
    label: int
    error: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = UPRIGHT
    digest: bytes = b""


def open_root(root: str | Path) -> dict[str, Source]:
    """Return the sources of a folder by split: packed images, images with masks, split folders, or class folders.

    Raises:
        ValueError: the folder does not exist, or contains no images.
    """
    root = Path(home(root))
    if not root.is_dir():
        raise ValueError(f"{sanitized(root)} is not a folder")
    packed_splits = [split for split in ("train", "val", "test") if (root / split / INDEX).is_file()]
    try:
        if packed_splits:
            return {split: PackedImages(str(root), split) for split in packed_splits}
        if (root / "images").is_dir() and (root / "masks").is_dir():
            return {split: MaskFolders(str(root), split) for split in ("train", "val")}
        return {split: ImageFolder(folder) for split, folder in (find_splits(root) or {"all": root}).items()}
    except FileNotFoundError as error:
        raise ValueError(f"{sanitized(root)}: {error}") from None


def check_sources(sources: Mapping[str, Any], sample: int | None = 200) -> Iterator[Finding]:
    """Yield the findings on sources of images.

    Args:
        sources: sources by split.
        sample: number of images to read from each split; all if None.
    """
    sources = {split: source_of(source) for split, source in sources.items()}
    for split, source in sources.items():
        yield from _count(split, source)
    yield from _compare_classes(sources)
    images = {}
    for split, source in sources.items():
        if (kind := _unsupported_sample_type(source)) is None:
            images[split] = source
        else:
            text = f"{source.name} returns {kind}, not pairs (image, label): its samples are not checked"
            yield "note", split, text
    records = [record for split, source in images.items() for record in _read_images(split, source, sample)]
    if records:
        total = sum(len(source) for source in images.values())
        yield "ok", "read", f"{len(records)} of {total} images{' (--all reads all)' if len(records) < total else ''}"
        yield from _check_images(records, total)


def _count(split: str, source: Source) -> Iterator[Finding]:
    classes, labels = source.classes, source.targets
    text = f"{len(source)} images" + (f" in {len(classes)} classes" if classes is not None else "")
    yield "ok" if len(source) else "fault", split, text
    if classes is not None and labels is not None and len(source):
        counts = np.bincount(np.asarray(labels, np.int64), minlength=len(classes))
        few, many = int(counts.argmin()), int(counts.argmax())
        text = f"from {counts[few]} images ({sanitized(classes[few])}) to {counts[many]} ({sanitized(classes[many])})"
        text = f"{counts[few]} images per class" if counts[few] == counts[many] else text
        empty = [sanitized(classes[label]) for label in np.flatnonzero(counts == 0)[:MAX_NAMED]]
        yield "note" if counts[few] < 2 else "ok", f"{split}, classes", text
        if empty:
            yield "note", f"{split}, classes", f"{int((counts == 0).sum())} have no image: {', '.join(empty)}"
    if isinstance(source, ImageFolder):
        yield from _depth(split, str(source.root))
        files = [file for _, names in walk_tree(str(source.root)) for file in names if not is_image(file)]
        extensions = Counter(os.path.splitext(file)[1].lower() or "no extension" for file in files)
        if files:
            common = ", ".join(f"{count} {sanitized(name)}" for name, count in extensions.most_common(MAX_NAMED))
            yield "note", f"{split}, excluded", f"{len(files)} files that are not images: {common}"


def _unsupported_sample_type(source: Source) -> str | None:
    """Return the name of the samples' type if they are not pairs (image, label); else None."""
    if source.encoded or not len(source):
        return None
    try:
        sample = source[0]
    except Exception:  # reported for each sample by _read_image
        return None
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        return None if isinstance(sample[0], Image.Image) else f"pairs of {type(sample[0]).__name__}"
    return type(sample).__name__


def _depth(split: str, root: str) -> Iterator[Finding]:
    """Report a folder that only leads to the folder of the classes, as in unpacked archives.

    Its only subfolder would be read as a single class without images.
    """
    folder, depth = root, 0
    while True:
        folders, files = list_dir(folder)
        if any(is_image(file.name) for file in files):
            return
        if len(folders) != 1:
            break
        folder, depth = folders[0].path, depth + 1
    if depth and folders:
        text = f"the only class, {sanitized(os.path.relpath(folder, root))}, has {len(folders)} folders and no image"
        yield "fault", f"{split}, classes", f"{text}: use {sanitized(folder)} as the data folder"


def _compare_classes(sources: Mapping[str, Source]) -> Iterator[Finding]:
    classes_by_split = {split: list(source.classes) for split, source in sources.items() if source.classes}
    if len(classes_by_split) < 2:
        return
    (first, classes), *others = classes_by_split.items()
    for split, names in others:
        if names == classes:
            continue
        only = {first: sorted({*classes} - {*names}), split: sorted({*names} - {*classes})}
        parts = [f"{', '.join(map(sanitized, rest[:MAX_NAMED]))} only in {key}" for key, rest in only.items() if rest]
        yield "fault", "classes", f"{split} and {first} differ: {'; '.join(parts) or 'different order'}"


def _read_images(split: str, source: Source, sample: int | None) -> Iterator[ImageRecord]:
    positions: Sequence[int] = range(len(source))
    if sample is not None and sample < len(source):
        positions = sorted(np.random.default_rng(0).choice(len(source), sample, replace=False).tolist())
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # decoding releases the GIL
        for start in range(0, len(positions), 1024):  # limits the number of queued tasks
            part = positions[start : start + 1024]
            yield from pool.map(lambda position: _read_image(split, source, position), part)


def _read_image(split: str, source: Source, position: int) -> ImageRecord:
    path, label = source.path(position), -1
    try:
        if not source.encoded:
            image, label = source[position]
            label = -1 if isinstance(label, np.ndarray) else label  # a mask, which the source has checked
            digest = hashlib.sha256(np.asarray(image).tobytes()).digest()
            return ImageRecord(split, path, label, "", image.size, image.mode, UPRIGHT, digest)
        data, label = source.read(position)
        image = open_image(data, mode=None)
        orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    except UnreadableImageError as error:
        return ImageRecord(split, path, label, str(error))
    except Exception as error:  # a user's source can raise anything
        return ImageRecord(split, path, label, str(error) or type(error).__name__)
    return ImageRecord(split, path, label, "", image.size, image.mode, orientation, hashlib.sha256(data).digest())


def _check_images(records: list[ImageRecord], total: int) -> Iterator[Finding]:
    broken = [record for record in records if record.error]
    good = [record for record in records if not record.error]
    if broken:
        expected = len(broken) * total / len(records)
        level = "fault" if not good or expected > MAX_UNREADABLE else "note"
        advice = f"; a run stops at more than {MAX_UNREADABLE}" if level == "fault" else ""
        names = _list_images(broken, lambda record: f"{sanitized(record.path)} ({sanitized(record.error, 100)})")
        yield level, "broken", names + advice
    else:
        yield "ok", "broken", "none"
    if good:
        sides = [min(record.size) for record in good]
        widths, heights = zip(*(record.size for record in good))
        median = f"{int(np.median(widths))} x {int(np.median(heights))}"
        yield "ok", "size", f"shorter side from {min(sides)} to {max(sides)} pixels, median size {median}"
    tiny = [record for record in good if min(record.size) < TINY]
    if tiny:
        yield "note", "tiny", f"shorter side below {TINY} pixels: {_list_images(tiny)}"
    modes = Counter(record.mode for record in good)
    if modes.keys() - {"RGB"}:
        yield "ok", "colors", ", ".join(f"{count} {mode}" for mode, count in modes.most_common()) + "; converted"
    rotated = [record for record in good if record.orientation != UPRIGHT]
    if rotated:
        yield "note", "orientation", f"the EXIF rotation is ignored: {_list_images(rotated)}"
    yield from _duplicates(good)


def _duplicates(records: list[ImageRecord]) -> Iterator[Finding]:
    by_digest: dict[bytes, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_digest[record.digest].append(record)
    groups = [group for group in by_digest.values() if len(group) > 1]
    across_splits = [group for group in groups if len({record.split for record in group}) > 1]
    across_classes = [group for group in groups if len({record.label for record in group}) > 1]

    def list_groups(groups: list[list[ImageRecord]]) -> str:
        names = [" = ".join(sanitized(record.path) for record in group[:3]) for group in groups[:MAX_NAMED]]
        return f"{len(groups)}: {'; '.join(names)}"

    if across_splits:
        yield "note", "in several splits", f"the same file, {list_groups(across_splits)}"
    if across_classes:
        yield "note", "in several classes", f"the same file, {list_groups(across_classes)}"
    rest = sum(len(group) - 1 for group in groups)
    yield "note" if rest else "ok", "duplicates", f"{rest or 'none'} among the images read"


def _list_images(records: list[ImageRecord], describe=lambda record: sanitized(record.path)) -> str:
    more = f" and {len(records) - MAX_NAMED} more" if len(records) > MAX_NAMED else ""
    return f"{len(records)}: {', '.join(map(describe, records[:MAX_NAMED]))}{more}"

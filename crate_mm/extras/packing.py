"""Pack an image tree into shards. Packing can be interrupted, and shared by several processes or machines.

An incomplete pack is in ``<target>.part``. Its plan fixes the number of images per shard, so that a shard's number
determines its images. Each shard is written atomically, and then its rows of the index with its checksum. When all
shards exist, the index is written, the folder is renamed, and auxiliary files are deleted. The plan is deleted last, so
that the same command can resume an interrupted deletion.
"""

import hashlib
import json
import math
import secrets
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from PIL import features

from ..datasets.folders import ClassFolders
from ..datasets.mapped import MappedArrays, save_arrays, text_array
from ..datasets.packed import PackedImages
from ..datasets.shards import Rows, about_shard, is_intact, shard_name, write_index
from ..io.files import FileLock, atomic_file, is_partial_file
from ..io.untrusted import read_json, read_regular, sanitized
from .encoding import encode

MARKER = ".packing"  # marks an incomplete pack; locked while one process packs all shards
PLAN = ".plan.json"
ROWS = ".rows"  # folder of the shards' index rows
PATIENCE = 10.0  # seconds to wait for another part that is starting
FORM = 1  # version of the plan's format
SAMPLED = 64  # images encoded to estimate the number of images per shard
OVERHEAD = 3 * 512 + 256  # bytes per sample in a tar file in addition to the image: two headers, label, padding


class Packing:
    """The shards of an image tree, their state, and their index.

    Args:
        target: the resulting folder.
        root: the folder of the images.
        sources: the images by split.
        options: ``short_side``, ``quality`` and ``shard_mb``, as in ``tools/pack_dataset.py``.

    Attributes:
        is_packed: whether an interrupted run has renamed the folder to ``target``, so that only ``tidy`` remains.
        images: number of images by split, set when the pack is complete.

    Raises:
        ValueError: the target exists.
    """

    def __init__(self, target: Path, root: str, sources: dict[str, ClassFolders], options: dict) -> None:
        self.target, self.root, self.sources, self.options = target, root, sources, options
        self.is_packed = (target / PLAN).is_file()
        self.folder = target if self.is_packed else target.with_name(f"{target.name}.part")
        self.images: dict[str, int] = {}
        self._all = FileLock(self.folder / MARKER)
        if not self.is_packed:
            self._check_target()

    def _check_target(self) -> None:
        if self.target.exists():
            raise ValueError(f"{self.target} already exists: choose a new folder")

    @contextmanager
    def locked_part(self, part: int, parts: int) -> Iterator[None]:
        """Lock a part of the packing, new or interrupted, so that no other process packs it.

        Raises:
            ValueError: the folder is not a pack, the pack was started with other options or images, or another process
                packs the part.
        """
        _make_marked_folder(self.folder)
        part_lock = FileLock(self.folder / f"{MARKER}-{part}-of-{parts}")
        try:
            self._acquire(self._all, PATIENCE if parts > 1 else 0)
            for path in self.folder.glob(f"{MARKER}-*"):
                if parts == 1 or not path.name.endswith(f"-of-{parts}"):  # another number of parts
                    lock = FileLock(path)
                    self._acquire(lock, 0)
                    lock.release()
            if parts > 1:
                self._acquire(part_lock, 0)
            self._prepare()
            self._delete_partial_shards(part, parts)
            if parts > 1:
                self._all.release()
            yield
        finally:
            part_lock.release()
            self._all.release()

    def _acquire(self, lock: FileLock, timeout: float) -> None:
        if not lock.acquire(timeout):
            raise ValueError(f"another process is packing into {self.folder}: wait for it, or choose another folder")

    def _expected_plan(self) -> dict:
        plan = {"form": FORM, **self.options, "images": _digest(self.sources), "written_by": None}
        if self.options["short_side"]:
            plan["written_by"] = f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"
        return plan

    def _prepare(self) -> None:
        """Write a plan, or load the plan of an interrupted run."""
        plan = self._expected_plan()
        if not (self.folder / PLAN).exists():
            for path in self.folder.iterdir():
                if not path.name.startswith(MARKER):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            lengths = {split: self._images_per_shard(source) for split, source in self.sources.items()}
            with atomic_file(self.folder / PLAN, text=True) as file:
                json.dump({**plan, "images_per_shard": lengths}, file)
        self._read_plan(plan)
        for split in self.sources:
            for folder in (self.folder / split, self.folder / ROWS / split):
                folder.mkdir(parents=True, exist_ok=True)

    def _read_plan(self, plan: dict) -> None:
        file = self.folder / PLAN
        text = read_regular(file, 2**20)
        self._plan = hashlib.sha256(text).hexdigest()
        try:
            stored = read_json(text)
            self._lengths = {split: stored["images_per_shard"][split] for split in self.sources}
            assert all(type(length) is int and length > 0 for length in self._lengths.values())
        except Exception:
            raise ValueError(f"{file} is damaged: delete {self.folder} to start over") from None
        for key, value in plan.items():
            if stored.get(key) != value:
                change = f"with {key} {sanitized(stored.get(key))}, now {value}"
                change = "with other images" if key == "images" else change
                raise ValueError(
                    f"{self.folder} was started {change}: use the same options and images, or delete it to start over"
                )

    def _images_per_shard(self, source: ClassFolders) -> int:
        indices = np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)).tolist()
        encoded = [encode(source.path(i), self.options["short_side"], self.options["quality"]) for i in indices]
        sizes = [len(data) for suffix, data in encoded if suffix is not None] or [0]
        return max(int(self.options["shard_mb"] * 10**6 / (statistics.mean(sizes) + OVERHEAD)), 1)

    def _delete_partial_shards(self, part: int, parts: int) -> None:
        """Delete the shards that a killed run was writing."""
        for split in self.sources:
            names = {shard_name(number) for number in self.shards(split, part, parts)}
            for path in (self.folder / split).iterdir():
                if is_partial_file(path.name, r"shard-\d+\.tar") and path.name[1:].rsplit(".", 2)[0] in names:
                    path.unlink()

    def shards(self, split: str, part: int = 1, parts: int = 1) -> range:
        """Return the numbers of a part's shards: every ``parts``-th shard."""
        return range(part - 1, -(-len(self.sources[split]) // self._lengths[split]), parts)

    def positions(self, split: str, number: int) -> range:
        """Return the positions of a shard's images in the source."""
        length = self._lengths[split]
        return range(number * length, min((number + 1) * length, len(self.sources[split])))

    def shard(self, split: str, number: int) -> Path:
        return self.folder / split / shard_name(number)

    def _rows(self, split: str, number: int) -> Path:
        return (self.folder / ROWS / split / shard_name(number)).with_suffix(".npz")

    def count(self) -> int:
        return sum(len(self.shards(split)) for split in self.sources)

    def count_done(self) -> int:
        return sum(self._rows(split, number).exists() for split in self.sources for number in self.shards(split))

    def is_done(self, split: str, number: int) -> bool:
        """Return whether a shard of this packing exists and is intact; reads the whole shard."""
        shard, rows = self.shard(split, number), self._rows(split, number)
        return is_intact(shard, rows) and about_shard(MappedArrays(rows, check=False)).get("plan") == self._plan

    def mark_done(self, split: str, number: int, rows: Rows, failed_images: list[str]) -> None:
        """Record a written shard with its rows and the images that could not be read."""
        about = {**about_shard(rows), "plan": self._plan, "left_out": failed_images}
        save_arrays(self._rows(split, number), {**rows, "about": text_array(json.dumps(about))})

    def finish(self) -> list[str] | None:
        """Write the index and rename the folder, if all shards exist.

        Returns:
            The images that failed, or None if shards are missing or another process has finished the pack.

        Raises:
            ValueError: a shard belongs to another packing or was modified, or the target exists.
        """
        if self.count_done() < self.count():
            return None
        try:
            self._all.acquire(math.inf)
        except FileNotFoundError:  # another part finished at the same time
            return None
        try:
            if not (self.folder / PLAN).exists():  # another part has finished
                return None
            failed_images = [text for split in self.sources for text in self._join(split)]
            self._check_target()  # again, because rename would replace an empty folder
            self.folder.rename(self.target)
            self._delete_auxiliary_files()
            return failed_images
        finally:
            self._all.release()

    def tidy(self) -> None:
        """Finish a run that was interrupted after the renaming.

        Raises:
            ValueError: another process is finishing the pack, or it was started with other options or images.
        """
        self._acquire(self._all, 0)
        try:
            if (self.target / PLAN).exists():  # else another process has finished the pack
                self._read_plan(self._expected_plan())
            self._delete_auxiliary_files()
            self.images = {split: len(PackedImages(self.target, split)) for split in self.sources}
        finally:
            self._all.release()

    def _delete_auxiliary_files(self) -> None:
        for path in [self.target / ROWS, *self.target.glob(f"{MARKER}*"), self.target / PLAN]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _join(self, split: str) -> list[str]:
        numbers, failed_images = self.shards(split), []
        for number in numbers:
            about = about_shard(MappedArrays(self._rows(split, number)))
            if about.get("plan") != self._plan:
                raise ValueError(f"{self.shard(split, number)} belongs to another packing: pack again, without --part")
            failed_images += map(str, about["left_out"])
        names = [shard_name(number) for number in numbers]
        for path in (self.folder / split).iterdir():
            if path.name not in names:
                path.unlink()
        shards = list(zip(names, (self._rows(split, number) for number in numbers)))
        self.images[split] = write_index(self.folder / split, shards, list(map(str, self.sources[split].classes)))
        index = PackedImages(self.folder, split)  # checks the sizes of all shards and the bounds of all images
        nonempty = {path.name for path in index.files}
        for name in names:
            if name not in nonempty:  # no image could be read
                (self.folder / split / name).unlink()
        return failed_images


def _make_marked_folder(folder: Path) -> None:
    """Create a folder with the marker atomically; an existing folder must have the marker.

    Raises:
        ValueError: an existing folder has no marker.
    """
    marker = folder / MARKER
    if not folder.exists():
        new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        new.mkdir(parents=True)
        (new / MARKER).touch()
        try:
            new.rename(folder)
        except OSError:  # another part has created the folder
            shutil.rmtree(new)
    if not marker.is_file() or marker.is_symlink() or folder.is_symlink():
        raise ValueError(f"{folder} exists but was not created by an earlier packing: move it")


def _digest(sources: dict[str, ClassFolders]) -> str:
    """Return a checksum of the classes and of the images' relative paths, labels and order."""
    digest = hashlib.sha256()
    for split, source in sources.items():
        digest.update(json.dumps([split, list(map(str, source.classes)), source.samples.digest()]).encode())
    return digest.hexdigest()

"""A packing that may be cut off, and that several processes or machines may share.

Until it is whole, a pack lies in ``<target>.part``. Its plan says how many images a shard has; so a shard is known by
its number alone, whoever writes it and when. A shard is written whole or not at all, and then its rows, with its
checksum. When all are there the index is written, the folder gets its name, and what a pack does not need is removed:
the plan last, so that the same command can go on with a removal that was cut off.
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

from ..datasets.encoding import encode
from ..datasets.folders import ClassFolders
from ..datasets.mapped import MappedArrays, save_arrays, text_array
from ..datasets.packed import PackedImages
from ..datasets.shards import Rows, about_shard, is_whole, shard_name, write_index
from ..io.files import FileLock, atomic_file, is_leftover
from ..io.untrusted import read_json, read_regular, sanitized

MARKER = ".packing"  # in an unfinished folder: that it is ours, and, locked, that a process is at work on all of it
PLAN = ".plan.json"
ROWS = ".rows"  # folder of the shards' rows
PATIENCE = 10.0  # seconds for another part that is just beginning
FORM = 1
TRIED = 64  # images whose size says how many are in a shard
OVERHEAD = 3 * 512 + 256  # bytes of a sample in a tar file beside the image's own: two headers, label, filling


class Packing:
    """The shards of an image tree: which there are, which are done, and their index in the end.

    Args:
        target: the folder that is there in the end.
        root: the folder of the images.
        sources: the images by split.
        options: ``short_side``, ``quality`` and ``shard_mb``, as ``tools/pack_dataset.py`` has them.

    Attributes:
        is_packed: the target is whole, of a start that was cut off before its end: all that is left is ``tidy``.

    Raises:
        ValueError: the target exists.
    """

    def __init__(self, target: Path, root: str, sources: dict[str, ClassFolders], options: dict) -> None:
        self.target, self.root, self.sources, self.options = target, root, sources, options
        self.is_packed = (target / PLAN).is_file()
        self.folder = target if self.is_packed else target.with_name(f"{target.name}.part")
        self.images: dict[str, int] = {}  # of each split, in the end
        self._all = FileLock(self.folder / MARKER)
        if not self.is_packed:
            self._check_target()

    def _check_target(self) -> None:
        if self.target.exists():
            raise ValueError(f"{self.target} exists already: name a new folder")

    @contextmanager
    def locked_part(self, part: int, parts: int) -> Iterator[None]:
        """Hold a part of the packing, which an earlier start may have begun, so that no other process packs it.

        Raises:
            ValueError: the folder is another's; it was begun otherwise; or another process packs the part.
        """
        _make_marked(self.folder)
        own = FileLock(self.folder / f"{MARKER}-{part}-of-{parts}")
        try:
            self._acquire(self._all, PATIENCE if parts > 1 else 0)
            for path in self.folder.glob(f"{MARKER}-*"):
                if parts == 1 or not path.name.endswith(f"-of-{parts}"):  # another way of sharing it out
                    other = FileLock(path)
                    self._acquire(other, 0)
                    other.release()
            if parts > 1:
                self._acquire(own, 0)
            self._prepare()
            self._delete_partial_shards(part, parts)
            if parts > 1:
                self._all.release()
            yield
        finally:
            own.release()
            self._all.release()

    def _acquire(self, lock: FileLock, patience: float) -> None:
        if not lock.acquire(patience):
            raise ValueError(f"another process is packing into {self.folder}: wait for its end, or name another folder")

    def _wanted(self) -> dict:
        plan = {"form": FORM, **self.options, "images": _digest(self.sources), "written_by": None}
        if self.options["short_side"]:
            plan["written_by"] = f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"
        return plan

    def _prepare(self) -> None:
        """Make a plan, or take that of an earlier start."""
        plan = self._wanted()
        if not (self.folder / PLAN).exists():
            for path in self.folder.iterdir():
                if not path.name.startswith(MARKER):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            lengths = {split: self._images_per_shard(source) for split, source in self.sources.items()}
            with atomic_file(self.folder / PLAN, text=True) as opened:
                json.dump({**plan, "images_per_shard": lengths}, opened)
        self._read_plan(plan)
        for split in self.sources:
            for folder in (self.folder / split, self.folder / ROWS / split):
                folder.mkdir(parents=True, exist_ok=True)

    def _read_plan(self, plan: dict) -> None:
        file = self.folder / PLAN
        text = read_regular(file, 2**20)
        self._plan = hashlib.sha256(text).hexdigest()
        try:
            begun = read_json(text)
            self._lengths = {split: begun["images_per_shard"][split] for split in self.sources}
            assert all(type(length) is int and length > 0 for length in self._lengths.values())
        except Exception:
            raise ValueError(f"{file} is damaged: delete {self.folder} to begin anew") from None
        for key, value in plan.items():
            if begun.get(key) != value:
                what = f"with {key} {sanitized(begun.get(key))}, which is {value} now"
                what = "from other images than are there now" if key == "images" else what
                raise ValueError(f"{self.folder} was begun {what}: go on as it was begun, or delete it to begin anew")

    def _images_per_shard(self, source: ClassFolders) -> int:
        tried = np.unique(np.linspace(0, len(source) - 1, TRIED).astype(int)).tolist()
        made = [encode(source.path(i), self.options["short_side"], self.options["quality"]) for i in tried]
        sizes = [len(data) for suffix, data in made if suffix is not None] or [0]
        return max(int(self.options["shard_mb"] * 10**6 / (statistics.mean(sizes) + OVERHEAD)), 1)

    def _delete_partial_shards(self, part: int, parts: int) -> None:
        """Delete what an earlier start was writing when it was killed."""
        for split in self.sources:
            mine = {shard_name(number) for number in self.shards(split, part, parts)}
            for path in (self.folder / split).iterdir():
                if is_leftover(path.name, r"shard-\d+\.tar") and path.name[1:].rsplit(".", 2)[0] in mine:
                    path.unlink()

    def shards(self, split: str, part: int = 1, parts: int = 1) -> range:
        """The numbers of a part's shards: every so manieth."""
        return range(part - 1, -(-len(self.sources[split]) // self._lengths[split]), parts)

    def positions(self, split: str, number: int) -> range:
        """The images of a shard, by their positions in the source."""
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
        """Whether a shard of this packing is there and intact; all of it is read."""
        shard, rows = self.shard(split, number), self._rows(split, number)
        return is_whole(shard, rows) and about_shard(MappedArrays(rows, check=False)).get("plan") == self._plan

    def mark_done(self, split: str, number: int, rows: Rows, failed_images: list[str]) -> None:
        """Note that a shard is written, with its rows and the images that could not be read."""
        about = {**about_shard(rows), "plan": self._plan, "left_out": failed_images}
        save_arrays(self._rows(split, number), {**rows, "about": text_array(json.dumps(about))})

    def finish(self) -> list[str] | None:
        """Write the index, if all shards are there, and give the folder its name.

        Returns:
            The images that were left out, or None where shards are missing or another process has finished the pack.

        Raises:
            ValueError: a shard is not of this packing or not as it was written, or the target exists by now.
        """
        if self.count_done() < self.count():
            return None
        try:
            self._all.acquire(math.inf)
        except FileNotFoundError:  # another part was done in the same moment
            return None
        try:
            if not (self.folder / PLAN).exists():  # likewise
                return None
            failed_images = [text for split in self.sources for text in self._join(split)]
            self._check_target()  # meanwhile; an empty folder would be replaced
            self.folder.rename(self.target)
            self._remove_marks()
            return failed_images
        finally:
            self._all.release()

    def tidy(self) -> None:
        """End a start that was cut off between the renaming and its end.

        Raises:
            ValueError: another process is doing it, or the pack was begun otherwise.
        """
        self._acquire(self._all, 0)
        try:
            if (self.target / PLAN).exists():  # else another process has ended it by now
                self._read_plan(self._wanted())
            self._remove_marks()
            self.images = {split: len(PackedImages(self.target, split)) for split in self.sources}
        finally:
            self._all.release()

    def _remove_marks(self) -> None:
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
                raise ValueError(f"{self.shard(split, number)} is of another packing: pack again, without --part")
            failed_images += map(str, about["left_out"])
        names = [shard_name(number) for number in numbers]
        for path in (self.folder / split).iterdir():
            if path.name not in names:
                path.unlink()
        shards = list(zip(names, (self._rows(split, number) for number in numbers)))
        self.images[split] = write_index(self.folder / split, shards, list(map(str, self.sources[split].classes)))
        index = PackedImages(self.folder, split)  # all shards have their sizes, all images are within them
        used = {path.name for path in index.files}
        for name in names:
            if name not in used:  # none of its images could be read
                (self.folder / split / name).unlink()
        return failed_images


def _make_marked(folder: Path) -> None:
    """Make a folder that has the mark from its first moment; one that is there must have it.

    Raises:
        ValueError: it has not.
    """
    mark = folder / MARKER
    if not folder.exists():
        new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        new.mkdir(parents=True)
        (new / MARKER).touch()
        try:
            new.rename(folder)
        except OSError:  # another part was faster
            shutil.rmtree(new)
    if not mark.is_file() or mark.is_symlink() or folder.is_symlink():
        raise ValueError(f"{folder} is in the way, and not left by an earlier packing: move it away")


def _digest(sources: dict[str, ClassFolders]) -> str:
    """A checksum of the classes, and of the images' names, labels and order, wherever the folder lies."""
    digest = hashlib.sha256()
    for split, source in sources.items():
        digest.update(json.dumps([split, list(map(str, source.classes)), source.samples.digest()]).encode())
    return digest.hexdigest()

"""Pack an image tree into a few large files (WebDataset shards with an index), made smaller if wanted.

python tools/pack_dataset.py /data/imagenet /data/imagenet-packed --short-side 320
python tools/train.py configs/crate_base_in1k.py --cfg-options data_root=/data/imagenet-packed

Without --short-side the files go in as they are.
"""

import argparse
import io
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image
from rich.progress import Progress

from ..datasets import ClassFolders
from ..datasets.classification import UNREADABLE
from ..datasets.images import MOST_BYTES, convert, is_of_the_system, open_image
from ..datasets.packed import write_shards
from ..untrusted import read_regular, shown
from .options import Parser, one_sentence_errors, positive

MARK = ".packing"  # in an unfinished folder: that it is ours, and, locked, that a process is at work on it


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", help="folder that holds train/ and val/, or one folder a class")
    parser.add_argument("target", help="folder to write, which must not exist")
    parser.add_argument("--short-side", type=positive, help="make larger images this small, in pixels")
    parser.add_argument("--quality", type=positive, default=90, help="of images made smaller (default: 90)")
    parser.add_argument("--shard-mb", type=positive, default=1000, help="size of a shard in MB (default: 1000)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_sentence_errors():
        target = Path(args.target)
        unfinished = target.with_name(f"{target.name}.part")  # of a/b/ too
        if target.exists():
            raise ValueError(f"{target} exists already: name a new folder")
        sources = {split: ClassFolders(args.source, split) for split in ("train", "val")}
        broken: list[str] = []
        with begun(unfinished):
            for split, source in sources.items():
                (unfinished / split).mkdir()
                samples = encoded(source, args, split, broken)
                classes = [str(name) for name in source.classes]
                count = write_shards(unfinished / split, samples, classes, args.shard_mb * 10**6)
                print(f"{split}: {count} images")
            if target.exists():  # meanwhile; an empty folder would be replaced
                raise ValueError(f"{target} exists already: name a new folder")
            unfinished.rename(target)
            (target / MARK).unlink()
        for reason in broken:
            encoding = sys.stdout.encoding or "ascii"
            print(f"left out: {reason}".encode(encoding, "backslashreplace").decode(encoding))


@contextmanager
def begun(folder: Path) -> Iterator[None]:
    """An empty folder that no other process packs into: a new one, or what an earlier packing left unfinished.

    Raises:
        ValueError: the folder is another's, or another process packs into it.
    """
    mark = folder / MARK
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not mark.is_file() or mark.is_symlink() or folder.is_symlink():
            raise ValueError(f"{folder} is in the way, and not left by an earlier packing: move it away") from None
    lock = FileLock(mark, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is packing into {folder}: wait for its end, or name another folder"
        ) from None
    try:
        for path in folder.iterdir():
            if path.name != MARK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
    finally:
        lock.release()


def encoded(
    source: ClassFolders, args: argparse.Namespace, split: str, broken: list[str]
) -> Iterator[tuple[str, bytes, int]]:
    """Name, bytes and label of each readable image; what cannot be read is listed in ``broken``."""
    paths, labels = zip(*source.samples)
    make = partial(encode, short_side=args.short_side, quality=args.quality)
    with ProcessPoolExecutor(args.workers) as pool, Progress(transient=True) as progress:
        results = progress.track(pool.map(make, paths, chunksize=16), total=len(paths), description=split)
        for path, label, (suffix, data) in zip(paths, labels, results):
            if suffix is None:
                broken.append(f"{shown(path)} ({shown(data)})")
            else:
                yield str(Path(path).relative_to(args.source).with_suffix(suffix)), data, label


def encode(path: str, short_side: int | None, quality: int) -> tuple[str | None, bytes | str]:
    """A file's suffix and bytes, made smaller where it is larger; or None and why it cannot be read."""
    try:
        data = read_regular(path, MOST_BYTES)
        image = open_image(data, mode=None)
        if short_side is None or min(image.size) <= short_side:
            return Path(path).suffix, data
        scale = short_side / min(image.size)
        size = tuple(max(round(side * scale), short_side) for side in image.size)
        smaller = io.BytesIO()
        convert(image).resize(size, Image.Resampling.BICUBIC).save(smaller, "JPEG", quality=quality)
        return ".jpg", smaller.getvalue()
    except UNREADABLE as error:
        if is_of_the_system(error):
            raise
        return None, str(error) or type(error).__name__


if __name__ == "__main__":
    main()

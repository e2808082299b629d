"""Pack an image tree into WebDataset shards with an index.

python tools/pack_dataset.py /data/imagenet /data/imagenet-packed --short-side 320
python tools/train.py configs/crate_base_in1k.py --cfg-options data_root=/data/imagenet-packed

To resume an interrupted packing, run the same command again. The result has the same bytes as without the interruption.

To share the work between machines, run --part 1/4 to --part 4/4 with the same target on a shared file system. The
machine that finishes last merges the parts. Without a shared file system, copy the contents of all <target>.part
directories into one such directory, and run the command on its machine without --part.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from rich.progress import Progress

from ..datasets import ClassFolders
from ..datasets.shards import write_shard
from ..extras.encoding import encode_parallel
from ..extras.packing import Packing
from ..io.untrusted import sanitized, say
from .options import Parser, positive_int, user_errors


def part(text: str) -> tuple[int, int]:
    """Parse ``--part``: '2/8' gives (2, 8)."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, such as 2/8, got {text!r}")
    return int(match[1]), int(match[2])


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", help="folder with train/ and val/, or with one folder per class")
    parser.add_argument("target", help="directory to create")
    parser.add_argument(
        "--short-side",
        type=positive_int,
        help="shrink larger images to this short side, in pixels (default: copy files unchanged)",
    )
    parser.add_argument("--quality", type=positive_int, default=90, help="JPEG quality of shrunk images (default: 90)")
    parser.add_argument(
        "--shard-mb", type=positive_int, default=1000, help="approximate size of a shard, in MB (default: 1000)"
    )
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="number of processes (default: all cores)"
    )
    parser.add_argument(
        "--part",
        type=part,
        default=(1, 1),
        metavar="I/N",
        help="pack part I of N, to share the work between machines",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        sources = {split: ClassFolders(args.source, split) for split in ("train", "val")}
        options = dict(short_side=args.short_side, quality=args.quality, shard_mb=args.shard_mb)
        packing = Packing(Path(args.target), args.source, sources, options)
        if packing.is_packed:
            packing.tidy()
            say(f"{packing.target} is already complete: deleted the leftovers of the interrupted packing")
            failed_images = []
        else:
            failed_images = pack_part(packing, args)
        if failed_images is None:
            message = f"part {args.part[0]} of {args.part[1]} is packed"
            if packing.target.exists():
                say(f"{message}; another process has merged the parts")
            else:
                progress = f"{packing.count_done()} of {packing.count()} shards are in {packing.folder}"
                say(f"{message}; {progress}, and the process that packs the last shard merges the parts")
            return
        for split, count in packing.images.items():
            say(f"{split}: {count} images")
        for reason in failed_images:
            say(f"left out: {reason}")


def pack_part(packing: Packing, args: argparse.Namespace) -> list[str] | None:
    """Pack a part, merge the parts if it is the last one, and return the result of ``Packing.finish``."""
    with packing.locked_part(*args.part):
        try:
            for split in packing.sources:
                pack(packing, split, args)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {packing.count_done()} of {packing.count()} shards are packed; run the same command "
                "again to resume"
            ) from None
        return packing.finish()


def pack(packing: Packing, split: str, args: argparse.Namespace) -> None:
    """Pack the missing shards of a part."""
    shards = packing.shards(split, *args.part)
    with Progress(transient=True, disable=not (sys.stdout and sys.stdout.isatty())) as progress:
        missing = [
            number
            for number in progress.track(shards, description=f"{split}: checking existing shards")
            if not packing.is_done(split, number)
        ]
        if len(missing) < len(shards):
            say(f"{split}: {len(shards) - len(missing)} of {len(shards)} shards are already complete")
        positions = np.concatenate([[], *(packing.positions(split, number) for number in missing)]).astype(int)
        source = packing.sources[split]
        results = encode_parallel(source, positions, args.workers, args.short_side, args.quality)
        results = iter(progress.track(zip(positions, results), total=len(positions), description=split))
        for number in missing:
            failed_images: list[str] = []
            shard_results = islice(results, len(packing.positions(split, number)))
            rows = write_shard(packing.shard(split, number), samples(shard_results, source, args.source, failed_images))
            packing.mark_done(split, number, rows, failed_images)


def samples(
    results: Iterator, source: ClassFolders, root: str, failed_images: list[str]
) -> Iterator[tuple[int, str, bytes, int]]:
    """Yield position, name, bytes and label of each readable image; append the others to ``failed_images``."""
    for position, (suffix, data) in results:
        position = int(position)
        path, label = source.samples[position]
        if suffix is None:
            failed_images.append(f"{sanitized(path)} ({sanitized(data)})")
        else:
            yield position, str(Path(path).relative_to(root).with_suffix(suffix)), data, label

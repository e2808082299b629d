"""Pack an image tree into a few large files (WebDataset shards with an index), made smaller if wanted.

python tools/pack_dataset.py /data/imagenet /data/imagenet-packed --short-side 320
python tools/train.py configs/crate_base_in1k.py --cfg-options data_root=/data/imagenet-packed

Without --short-side the files go in as they are.

What was cut off goes on where it was, by the same command. Several machines pack a part each, with --part 1/4 to
--part 4/4, into one folder that all of them see; the last to be done puts the parts together. Without a common folder,
copy all of their <target>.part into one and run the command there without --part. The result is the same to the byte.
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
from ..datasets.encoding import encode, encode_parallel  # noqa: F401  the first for scripts, which look for it here
from ..datasets.shards import write_shard
from ..extras.packing import Packing
from ..io.untrusted import sanitized, say
from .options import Parser, positive_int, user_errors


def part(text: str) -> tuple[int, int]:
    """Read ``--part``: 2/8 as (2, 8)."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"a part of so many is wanted, as 2/8 for the second of eight, got {text!r}")
    return int(match[1]), int(match[2])


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", help="folder that holds train/ and val/, or one folder a class")
    parser.add_argument("target", help="folder to write, which must not exist")
    parser.add_argument("--short-side", type=positive_int, help="make larger images this small, in pixels")
    parser.add_argument("--quality", type=positive_int, default=90, help="of images made smaller (default: 90)")
    parser.add_argument(
        "--shard-mb", type=positive_int, default=1000, help="size of a shard in MB, about (default: 1000)"
    )
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="pack the I-th part of N")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        sources = {split: ClassFolders(args.source, split) for split in ("train", "val")}
        options = dict(short_side=args.short_side, quality=args.quality, shard_mb=args.shard_mb)
        packing = Packing(Path(args.target), args.source, sources, options)
        if packing.is_packed:
            packing.tidy()
            say(f"{packing.target} was packed whole before; an earlier start was cut off at its very end")
            left_out = []
        else:
            left_out = pack_part(packing, args)
        if left_out is None:
            done = f"part {args.part[0]} of {args.part[1]} is packed"
            if packing.target.exists():
                say(f"{done}; another process has put the parts together")
            else:
                there = f"{packing.count_done()} of all {packing.count()} shards are in {packing.folder}"
                say(f"{done}; {there}, and the process that packs the last of them puts them together")
            return
        for split, count in packing.images.items():
            say(f"{split}: {count} images")
        for reason in left_out:
            say(f"left out: {reason}")


def pack_part(packing: Packing, args: argparse.Namespace) -> list[str] | None:
    """Pack a part, and put the parts together if it is the last; what ``Packing.finish`` returns."""
    with packing.locked_part(*args.part):
        try:
            for split in packing.sources:
                pack(packing, split, args)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {packing.count_done()} of {packing.count()} shards are packed, and the same command "
                "goes on from there"
            ) from None
        return packing.finish()


def pack(packing: Packing, split: str, args: argparse.Namespace) -> None:
    """Pack the shards of a part that are not there yet."""
    mine = packing.shards(split, *args.part)
    with Progress(transient=True, disable=not (sys.stdout and sys.stdout.isatty())) as progress:
        missing = [
            number
            for number in progress.track(mine, description=f"{split}: shards of an earlier start")
            if not packing.is_done(split, number)
        ]
        if len(missing) < len(mine):
            say(f"{split}: {len(mine) - len(missing)} of {len(mine)} shards are there and whole")
        positions = np.concatenate([[], *(packing.positions(split, number) for number in missing)]).astype(int)
        source = packing.sources[split]
        results = encode_parallel(source, positions, args.workers, args.short_side, args.quality)
        results = iter(progress.track(zip(positions, results), total=len(positions), description=split))
        for number in missing:
            left_out: list[str] = []
            these = islice(results, len(packing.positions(split, number)))
            rows = write_shard(packing.shard(split, number), samples(these, source, args.source, left_out))
            packing.mark_done(split, number, rows, left_out)


def samples(
    results: Iterator, source: ClassFolders, root: str, left_out: list[str]
) -> Iterator[tuple[int, str, bytes, int]]:
    """Position, name, bytes and label of each readable image; what cannot be read is listed in ``left_out``."""
    for position, (suffix, data) in results:
        position = int(position)
        path, label = source.samples[position]
        if suffix is None:
            left_out.append(f"{sanitized(path)} ({sanitized(data)})")
        else:
            yield position, str(Path(path).relative_to(root).with_suffix(suffix)), data, label


if __name__ == "__main__":
    main()

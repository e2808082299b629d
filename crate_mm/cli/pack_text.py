"""Write text files as token files, train.bin and val.bin, for the training of a language model.

python tools/pack_text.py my/texts packed
python tools/pack_text.py my/texts packed --glob "*.txt" --tokenizer gpt2.json --val-fraction 0.01
python tools/pack_text.py book1.txt book2.txt packed --val book3.txt

Each file is one document. The tokenizer's end-of-document token follows it; for bytes, this token is the byte 0.
Without --val, a hash of the relative path assigns each file to training or validation, so every machine makes the same
split. A JSON file beside each token file names the tokenizer and counts documents, bytes and tokens.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from ..datasets.text import SPLITS, VAL_FRACTION, documents, split_files, text_files, write_tokens
from ..datasets.tokenizers import END, build_tokenizer
from ..io.progress import track
from ..io.untrusted import sanitized, say
from .options import Parser, add_shared, check_output, user_errors

Source = tuple[Path, list[str]]  # a folder, and paths of files relative to it


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("sources", nargs="+", help="text files, and folders of text files")
    parser.add_argument("target", help="folder for the token files, created if missing")
    parser.add_argument(
        "--val", nargs="+", metavar="PATH", help="files and folders for validation; all others are for training"
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=VAL_FRACTION,
        metavar="F",
        help="expected fraction of files for validation, without --val (default: 0.05)",
    )
    parser.add_argument("--glob", default="*", help="pattern of file names in folders, such as '*.txt' (default: all)")
    parser.add_argument(
        "--tokenizer", default="bytes", help="bytes, *.json (library tokenizers), or *.tiktoken (default: bytes)"
    )
    parser.add_argument("--end", default=END, help=f"end-of-document token of a tokenizer file (default: {END})")
    parser.add_argument("--pattern", metavar="REGEX", help="pattern that splits words, for a *.tiktoken file")
    add_shared(parser, "--force")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with user_errors():
        tokenizer = build_tokenizer(args.tokenizer, args.end, args.pattern)
        sources = find_sources(args.sources, args.glob)
        if args.val:
            val = find_sources(args.val, args.glob)
            splits = {"train": without(sources, val), "val": val}
        else:
            splits = {split: split_sources(sources, split, args.val_fraction) for split in SPLITS}
        target = Path(args.target)
        target.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            check_output(str(target / f"{split}.bin"), force=args.force)
        for split, parts in splits.items():
            path = target / f"{split}.bin"
            total = sum(len(names) for _, names in parts)
            counts = write_tokens(path, track(documents(parts, tokenizer), f"packing {split}", total), tokenizer)
            say(
                f"{sanitized(path)}: {counts['documents']:,} documents, {counts['bytes']:,} bytes, "
                f"{counts['tokens']:,} tokens"
            )


def find_sources(paths: Iterable[str], pattern: str) -> list[Source]:
    """Return files and folders as sources.

    Raises:
        ValueError: a path does not exist, or a folder has no file that matches the pattern.
    """
    files = map(Path, paths)
    return [(path.parent, [path.name]) if path.is_file() else (path, text_files(path, pattern)) for path in files]


def without(sources: list[Source], others: list[Source]) -> list[Source]:
    """Return sources without the files of other sources.

    Raises:
        ValueError: no file is left.
    """
    left_out = {(folder / name).resolve() for folder, names in others for name in names}
    rest = [(folder, [n for n in names if (folder / n).resolve() not in left_out]) for folder, names in sources]
    if not any(names for _, names in rest):
        raise ValueError("all files are named by --val: no file is left for training")
    return rest


def split_sources(sources: list[Source], split: str, val_fraction: float) -> list[Source]:
    """Return the part of each source that belongs to a split, see ``split_files``."""
    chosen = set(split_files([name for _, names in sources for name in names], split, val_fraction))
    return [(folder, [name for name in names if name in chosen]) for folder, names in sources]

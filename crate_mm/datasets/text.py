"""Text files as token IDs: split by file, windows of bytes, and token files."""

import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..io.files import atomic_file, home, write_json
from ..io.log import print_log
from ..io.untrusted import open_regular, sanitized
from ..registry import DATASETS
from .base import data_folder
from .tokenizers import ByteTokenizer, Tokenizer
from .windows import Windows, description_path

SPLITS = ("train", "val")
VAL_FRACTION = 0.05  # for all datasets: with different fractions, training and validation could overlap
# Tests, tables of encodings, and parts of Python's library that some installations lack.
EXCLUDED = {"test", "tests", "idlelib", "idle_test", "lib2to3", "distutils", "ensurepip", "venv", "tkinter"}
EXCLUDED |= {"turtledemo", "turtle.py", "encodings", "pydoc_data"}


def is_validation(path: str, val_fraction: float) -> bool:
    """Return whether a file belongs to the validation split. Only a hash of its relative path decides this.

    Args:
        path: path relative to the folder, with slashes.
        val_fraction: the expected fraction of the files.
    """
    number = int.from_bytes(hashlib.sha256(path.encode(errors="surrogateescape")).digest()[:8], "big")
    return number < val_fraction * 2**64


def text_files(folder: str | Path, pattern: str = "*") -> list[str]:
    """Return the sorted relative paths, with slashes, of all files below a folder that are not hidden.

    Raises:
        ValueError: the folder does not exist, or has no file that matches ``pattern``.
    """
    folder = Path(home(folder))
    if not folder.is_dir():
        raise ValueError(f"{sanitized(folder)} does not exist or is not a folder: expected a folder of text files")
    paths = [path.relative_to(folder) for path in folder.rglob(pattern) if path.is_file()]
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise ValueError(f"{sanitized(folder)} has no file {sanitized(pattern)}")
    return names


def split_files(names: list[str], split: str, val_fraction: float) -> list[str]:
    """Return the files of a split, see ``is_validation``.

    Raises:
        ValueError: the split is unknown or has no file, or the fraction is not between 0 and 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    if not isinstance(val_fraction, float) or not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be a float between 0 and 1, got {val_fraction!r}")
    chosen = [name for name in names if is_validation(name, val_fraction) == (split == "val")]
    if not chosen:
        raise ValueError(
            f"none of the {len(names)} files belongs to the split {split!r} with val_fraction={val_fraction:g}: "
            "give more files, or pack them with crate-mm pack-text and another --val-fraction"
        )
    return chosen


@DATASETS.register_module()
class TextFiles(Windows):
    """Windows over the bytes of text files, which are read into memory.

    Each file is a document, and a byte 0 ends it. A hash of the relative path assigns a file to training or validation,
    so the split is the same on every machine; about 5 % of the files are for validation. The samples are those of
    ``Windows``. For texts that do not fit into memory, or for another tokenizer, use ``crate-mm pack-text``.

    Args:
        root: the folder; all files below it that match ``pattern`` are read, except hidden ones.
        length: N.
        split: 'train' or 'val'.
        pattern: pattern of the file names, such as ``*.txt``.
        random_windows: as for ``Windows``.

    Raises:
        ValueError: ``root`` is not set, the folder does not exist, the split is empty, or as for ``Windows``.
    """

    def __init__(
        self,
        root: str | None,
        length: int,
        split: str = "train",
        pattern: str = "*",
        random_windows: int | None = None,
    ) -> None:
        folder = Path(data_folder(root, "the folder of the text files"))
        names = split_files(text_files(folder, pattern), split, VAL_FRACTION)
        self._read(folder, names, length, random_windows)

    def _read(self, folder: Path, names: list[str], length: int, random_windows: int | None) -> None:
        tokenizer = ByteTokenizer()
        parts = [part for _, part in documents([(folder, names)], tokenizer)]
        super().__init__(np.concatenate(parts), length, 256, None, False, random_windows)
        self.description = {"tokenizer": "bytes", "bytes": len(self.tokens), "tokens": len(self.tokens)}


@DATASETS.register_module()
class PythonLibrary(TextFiles):
    """Windows over the bytes of the source files of Python's standard library, which every machine has.

    Tests, tables of encodings, and packages that some installations lack are left out. The library differs between
    versions of Python, and slightly between distributions, so a result must name the version; ``result.json`` does.

    Args:
        length: N.
        split: 'train' or 'val'.
        random_windows: as for ``Windows``.

    Raises:
        ValueError: the installation has no source files, or as for ``TextFiles``.
    """

    def __init__(self, length: int, split: str = "train", random_windows: int | None = None) -> None:
        folder = Path(sysconfig.get_path("stdlib"))
        names = split_files(library_files(folder), split, VAL_FRACTION)
        self._read(folder, names, length, random_windows)
        print_log(
            f"{split}: {len(names)} files of the library of Python {platform.python_version()}, {len(self.tokens):,} "
            "bytes; other versions of Python have other files",
            "current",
        )


def library_files(folder: Path) -> list[str]:
    """Return the sorted paths, with slashes, of the source files of Python's library, relative to its folder.

    Raises:
        ValueError: the folder has no source file of the library.
    """
    tops = [folder / name for name in sys.stdlib_module_names]
    paths = [path for top in tops for path in (top.with_name(f"{top.name}.py"), *top.rglob("*.py")) if path.is_file()]
    parts = [path.relative_to(folder).parts for path in paths]
    names = sorted("/".join(part) for part in parts if EXCLUDED.isdisjoint(part))
    if not names:
        raise ValueError(f"{sanitized(folder)} has no source of Python's standard library: use TextFiles")
    return names


def documents(sources: Iterable[tuple[Path, Iterable[str]]], tokenizer: Tokenizer) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of bytes of each file, and its token IDs with the end-of-document token.

    Args:
        sources: pairs of a folder and the paths of files relative to it.
        tokenizer: tokenizer of the texts.

    Raises:
        ValueError: a file cannot be read, is not UTF-8 and the tokenizer requires UTF-8, or contains the byte 0 and the
            tokenizer ends documents with this byte.
    """
    for folder, names in sources:
        for name in names:
            path = folder / name
            try:
                with open_regular(path) as file:
                    text = file.read()
                ids = tokenizer.encode(text)
            except (OSError, ValueError) as error:
                raise ValueError(f"{sanitized(path)} cannot be read as text: {error}") from None
            if isinstance(tokenizer, ByteTokenizer) and 0 in ids:
                raise ValueError(f"{sanitized(path)} is not a text: it contains the byte 0, which ends a document")
            yield len(text), np.append(ids, np.array(tokenizer.end, ids.dtype))


def write_tokens(path: str | Path, parts: Iterable[tuple[int, np.ndarray]], tokenizer: Tokenizer) -> dict:
    """Write a token file, uint16 in the machine's byte order, and its description; return the description.

    With every tokenizer, ``bytes`` is the number of bytes of the texts plus one per document, for its end. Bits per
    byte of different tokenizers are therefore comparable.

    Args:
        path: file to write. The description beside it is ``<path>.json``.
        parts: the number of bytes and the token IDs of each document, as from ``documents``.
        tokenizer: the tokenizer of the token IDs.
    """
    counts = {"documents": 0, "bytes": 0, "tokens": 0, "largest_id": 0}
    with atomic_file(path) as file:
        for size, ids in parts:
            file.write(ids.astype(np.uint16).tobytes())
            counts["documents"] += 1
            counts["bytes"] += size + 1
            counts["tokens"] += len(ids)
            counts["largest_id"] = max(counts["largest_id"], int(ids.max()))
        description_path(path).unlink(missing_ok=True)  # it describes the file that is being replaced
    description = {"tokenizer": tokenizer.description, "vocab_size": tokenizer.vocab_size, **counts}
    write_json(description_path(path), description)
    return description

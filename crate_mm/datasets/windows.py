"""Windows of a stream of token IDs, with the next tokens as labels. Shapes: N tokens of a window."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.files import home
from ..io.untrusted import is_count, read_json, read_regular, sanitized
from ..registry import DATASETS
from .base import IGNORED_TOKEN, Field, Index, SampleDataset

COUNTS = ("vocab_size", "largest_id", "documents", "bytes", "tokens")  # integers in a token file's description
MAX_DESCRIPTION_BYTES = 2**20
AT_ONCE = 2**24  # tokens searched at a time


@DATASETS.register_module()
class Windows(SampleDataset):
    """Samples ``{inputs: int64 (N,), labels: int64 (N,), sample_idx: int}``; ``labels[i]`` follows ``inputs[i]``.

    By default, the windows do not overlap. In training, a sample also has its ``sample_seed``.

    ``crate-mm pack-text`` writes a token file and beside it a description, ``<file>.json``: the tokenizer, the size of
    its vocabulary, and the numbers of documents, bytes and tokens. Without a description, the tokenizer is unknown.

    Args:
        tokens: token IDs, a one-dimensional array of integers, or a file of uint16 in the machine's byte order. The
            file is memory-mapped and shared by processes and workers. It must not be modified while it is in use.
        length: N.
        vocab_size: size of the vocabulary, to check IDs when a window is read (default: from the description; without a
            description, IDs are not checked).
        root: the folder of the file.
        drop_last: drop the tokens after the last full window. If False, one more window ends with the last token. In
            this window, labels that are also in the window before are -100, so that each label counts once.
        random_windows: number of windows per epoch. Each window starts at a random token, drawn with replacement and
            determined by the sample's seed, or by its position if it has no seed (default: disjoint windows).

    Raises:
        ValueError: the file does not exist, is not uint16, or does not have the number of tokens that its description
            states; the array is not one-dimensional, not of integers, or shorter than a window; (when read) an ID is
            outside the vocabulary.
    """

    def __init__(
        self,
        tokens: str | Path | np.ndarray,
        length: int,
        vocab_size: int | None = None,
        root: str | None = None,
        drop_last: bool = True,
        random_windows: int | None = None,
    ) -> None:
        if type(length) is not int or length < 1:
            raise ValueError(f"Windows: length must be a positive integer, got {length!r}")
        if random_windows is not None and (type(random_windows) is not int or random_windows < 1):
            raise ValueError(f"Windows: random_windows must be a positive integer or None, got {random_windows!r}")
        self.file = None if isinstance(tokens, np.ndarray) else Path(home(root or "."), home(tokens))
        self.tokens = self._map() if self.file else tokens
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            raise ValueError(
                f"Windows: expected an array of integers of shape (tokens,), got {self.tokens.dtype} of "
                f"{self.tokens.shape}"
            )
        if len(self.tokens) <= length:
            raise ValueError(
                f"{sanitized(self.file or 'the array')} has {len(self.tokens):,} tokens: a window of {length} and the "
                f"next token need {length + 1}"
            )
        self.description = self._read_description() if self.file else {}
        self.length, self.drop_last, self.random_windows = length, drop_last, random_windows
        self.vocab_size = self.description.get("vocab_size") if vocab_size is None else vocab_size

    def _map(self) -> np.ndarray:
        if not self.file.is_file():
            raise ValueError(f"{sanitized(self.file)} does not exist or is not a file: expected token IDs in uint16")
        size = self.file.stat().st_size
        if size % 2:
            raise ValueError(f"{sanitized(self.file)} has {size:,} bytes: expected an even number for uint16")
        return np.memmap(self.file, np.uint16, "r") if size else np.empty(0, np.uint16)

    def _read_description(self) -> dict[str, Any]:
        path = description_path(self.file)
        if not path.exists():
            return {}
        try:
            description = read_json(read_regular(path, MAX_DESCRIPTION_BYTES))
        except (OSError, ValueError) as error:
            raise ValueError(f"{sanitized(path)} is not the description of a token file: {error}") from None
        if not isinstance(description, dict) or not all(is_count(description.get(key)) for key in COUNTS):
            raise ValueError(
                f"{sanitized(path)} is not the description of a token file: expected the integers {', '.join(COUNTS)}"
            )
        if description["tokens"] != len(self.tokens):
            raise ValueError(
                f"{sanitized(self.file)} has {len(self.tokens):,} tokens, but {sanitized(path.name)} says "
                f"{description['tokens']:,}: the file was truncated or replaced; write it again with crate-mm pack-text"
            )
        return description

    @property
    def spec(self) -> dict[str, Field]:
        tokens = Field(torch.int64, (self.length,))
        return {"inputs": tokens, "labels": tokens, "sample_idx": Field(torch.int64)}

    @property
    def metainfo(self) -> dict[str, Any]:
        """The tokenizer and the numbers of bytes and tokens, as far as they are known; checkpoints store them."""
        known = {key: self.description[key] for key in ("tokenizer", "bytes", "tokens") if key in self.description}
        return {**super().metainfo, **known}

    def __len__(self) -> int:
        if self.random_windows is not None:
            return self.random_windows
        labels = len(self.tokens) - 1
        return labels // self.length if self.drop_last else -(-labels // self.length)

    def __getitem__(self, index: Index) -> dict:
        position, seed = index if isinstance(index, tuple) else (index, None)
        position = range(len(self))[position]  # IndexError ends an iteration over the dataset
        starts = len(self.tokens) - self.length
        if self.random_windows is None:
            start = min(position * self.length, starts - 1)
            repeated = position * self.length - start
        else:
            generator = torch.Generator().manual_seed(position if seed is None else seed)
            start, repeated = torch.randint(starts, (), generator=generator).item(), 0
        window = torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))
        if self.vocab_size is not None and not 0 <= window.min() <= window.max() < self.vocab_size:
            token = window[(window < 0) | (window >= self.vocab_size)][0]
            raise ValueError(f"{self._tokens_from(start)}: ID {token} is outside the vocabulary of {self.vocab_size}")
        sample = {"inputs": window[:-1], "labels": window[1:], "sample_idx": position}
        if repeated:
            sample["labels"] = window[1:].clone()
            sample["labels"][:repeated] = IGNORED_TOKEN
        return sample if seed is None else {**sample, "sample_seed": seed}

    def largest_id(self) -> int:
        """Return the largest token ID as the description states it; without a description, search all tokens."""
        if "largest_id" in self.description:
            return self.description["largest_id"]
        return max(int(self.tokens[at : at + AT_ONCE].max()) for at in range(0, len(self.tokens), AT_ONCE))

    def describe(self, position: int) -> str:
        """Return the location of a window, for messages."""
        if self.random_windows is not None:
            return f"random window {position} of {self.file or 'an array'}"
        return self._tokens_from(position * self.length)

    def _tokens_from(self, start: int) -> str:
        return f"tokens from {start:,} of {self.file or 'an array'}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "tokens": None if self.file else self.tokens}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.file:
            self.tokens = self._map()


def description_path(file: str | Path) -> Path:
    """Return the path of a token file's description."""
    return Path(f"{file}.json")

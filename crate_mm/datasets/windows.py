"""Windows of a stream of token IDs, with the next tokens as labels. Shapes: N tokens of a window."""

from pathlib import Path

import numpy as np
import torch

from ..io.files import home
from ..io.untrusted import sanitized
from ..registry import DATASETS
from .base import Field, Index, SampleDataset


@DATASETS.register_module()
class Windows(SampleDataset):
    """Samples ``{inputs: int64 (N,), labels: int64 (N,), sample_idx: int}``; ``labels[i]`` follows ``inputs[i]``.

    The windows do not overlap; a remainder shorter than a window is dropped. In training, a sample also has its
    ``sample_seed``.

    Args:
        tokens: token IDs, a one-dimensional array of integers, or a file of uint16 in the machine's byte order. The
            file is memory-mapped and shared by processes and workers. It must not be modified while it is in use.
        length: N.
        vocab_size: upper bound of the IDs, checked when they are read; None to skip the check.
        root: the folder of the file.

    Raises:
        ValueError: the file does not exist or is not uint16, the array has another shape or dtype, or it is shorter
            than a window; (when read) an ID is outside the vocabulary.
    """

    def __init__(
        self, tokens: str | Path | np.ndarray, length: int, vocab_size: int | None = None, root: str | None = None
    ) -> None:
        if type(length) is not int or length < 1:
            raise ValueError(f"Windows: length must be a positive integer, got {length!r}")
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
        self.length, self.vocab_size = length, vocab_size

    def _map(self) -> np.ndarray:
        if not self.file.is_file():
            raise ValueError(f"{sanitized(self.file)} does not exist or is not a file: expected token IDs in uint16")
        size = self.file.stat().st_size
        if size % 2:
            raise ValueError(f"{sanitized(self.file)} has {size:,} bytes: expected an even number for uint16")
        return np.memmap(self.file, np.uint16, "r") if size else np.empty(0, np.uint16)

    @property
    def spec(self) -> dict[str, Field]:
        tokens = Field(torch.int64, (self.length,))
        return {"inputs": tokens, "labels": tokens, "sample_idx": Field(torch.int64)}

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: Index) -> dict:
        position, seed = index if isinstance(index, tuple) else (index, None)
        start = range(len(self))[position] * self.length  # IndexError ends an iteration over the dataset
        window = torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))
        if self.vocab_size is not None and not 0 <= window.min() <= window.max() < self.vocab_size:
            token = window[(window < 0) | (window >= self.vocab_size)][0]
            raise ValueError(f"{self.describe(position)} has the ID {token}, outside the {self.vocab_size} known")
        sample = {"inputs": window[:-1], "labels": window[1:], "sample_idx": position}
        return sample if seed is None else {**sample, "sample_seed": seed}

    def describe(self, position: int) -> str:
        """Return the first token of a window and its file."""
        return f"tokens from {position * self.length:,} of {self.file or 'an array'}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "tokens": None if self.file else self.tokens}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.file:
            self.tokens = self._map()

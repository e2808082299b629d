"""Tokenizers: bytes as tokens, or a tokenizer file of Hugging Face's tokenizers or of tiktoken."""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..io.files import home
from ..io.untrusted import read_regular, sanitized

MAX_FILE_BYTES = 2**28
MAX_VOCAB = 2**16  # token files store uint16
END = "<|endoftext|>"


class Tokenizer(Protocol):
    """A tokenizer of the text of documents.

    Attributes:
        description: plain data that names the tokenizer in checkpoints and beside token files.
        vocab_size: number of token IDs.
        end: ID of the token that ends each document.
    """

    description: str | dict[str, Any]
    vocab_size: int
    end: int

    def encode(self, text: bytes) -> np.ndarray:
        """Return the token IDs of a text, ``(tokens,)``; raise ``ValueError`` if the text is not accepted."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token IDs; an incomplete character becomes U+FFFD."""


class ByteTokenizer:
    """A token is a byte. Byte 0, which text does not contain, ends a document."""

    description = "bytes"
    vocab_size = 256
    end = 0

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class FileTokenizer:
    """A tokenizer from a file: ``*.json`` of Hugging Face's tokenizers, or ``*.tiktoken`` (base64 tokens, ranks).

    A checkpoint stores the name of the file and a hash, not the file.

    Args:
        path: the file.
        end: text of the token that ends a document. With a tiktoken file, its ID follows the last ID of the file.
        pattern: regular expression that splits text into words; only for tiktoken's files, which do not contain it.

    Raises:
        ValueError: the file does not exist or is not a tokenizer, has no token ``end``, has more than 65,536 tokens, or
            is a tiktoken file without a pattern; or the package that reads it is not installed.
    """

    def __init__(self, path: str | Path, end: str = END, pattern: str | None = None) -> None:
        path = Path(home(path))
        try:
            content = read_regular(path, MAX_FILE_BYTES)
        except OSError as error:
            raise ValueError(f"the tokenizer {sanitized(path)} cannot be read: {error.strerror or error}") from None
        read = {".json": _read_tokenizers, ".tiktoken": _read_tiktoken}.get(path.suffix)
        if read is None:
            raise ValueError(
                f"the tokenizer {sanitized(path)} must be *.json (of the package tokenizers) or *.tiktoken"
            )
        self._encode, self.decode, self.vocab_size, end_id = read(path, content, end, pattern)
        if end_id is None:
            raise ValueError(
                f"the tokenizer {sanitized(path)} has no token {end!r} to end a document: set its end token with "
                "--end TOKEN"
            )
        if self.vocab_size > MAX_VOCAB:
            raise ValueError(
                f"the tokenizer {sanitized(path)} has {self.vocab_size:,} tokens: expected at most {MAX_VOCAB:,}, "
                "because token files store uint16"
            )
        self.end = end_id
        digest = hashlib.sha256(content + (pattern or "").encode()).hexdigest()
        self.description = {"name": path.name, "sha256": digest, "vocab_size": self.vocab_size, "end": end}
        if pattern is not None:
            self.description["pattern"] = pattern

    def encode(self, text: bytes) -> np.ndarray:
        try:
            return np.array(self._encode(text.decode()), np.uint16)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"byte {error.start:,} is not UTF-8: convert the text to UTF-8, or use the tokenizer 'bytes'"
            ) from None


def build_tokenizer(name: str | Path, end: str = END, pattern: str | None = None) -> Tokenizer:
    """Return the tokenizer 'bytes', or a ``FileTokenizer`` for the name of a file."""
    return ByteTokenizer() if name == "bytes" else FileTokenizer(name, end, pattern)


def tokenizer_of(description: Any, file: str | Path | None = None) -> Tokenizer:
    """Return the tokenizer that a checkpoint describes.

    Args:
        description: the ``Tokenizer.description`` in the checkpoint, or None.
        file: the file of the tokenizer, or 'bytes'; not needed if the description is 'bytes'.

    Raises:
        ValueError: the description is invalid, a file is needed but missing, or the file is another tokenizer.
    """
    if description is None:
        if file is None:
            raise ValueError("the checkpoint does not name its tokenizer: give it with --tokenizer bytes or FILE")
        return build_tokenizer(file)
    name = tokenizer_name(description)
    if description == "bytes":
        if file not in (None, "bytes"):
            raise ValueError(f"the model was trained on bytes, not on tokens of {sanitized(file)}: omit the tokenizer")
        return ByteTokenizer()
    if file in (None, "bytes"):
        raise ValueError(f"the model was trained with {name}, which checkpoints do not contain: give this file")
    tokenizer = FileTokenizer(file, description["end"], description.get("pattern"))
    if tokenizer.description["sha256"] != description["sha256"]:
        raise ValueError(f"{sanitized(file)} is not the tokenizer that the model was trained with, {name}")
    return tokenizer


def tokenizer_name(description: Any) -> str:
    """Return the name of a tokenizer for messages, from its description.

    Raises:
        ValueError: the description is invalid.
    """
    texts = [description.get(key) for key in ("name", "sha256", "end")] if isinstance(description, dict) else []
    if description != "bytes" and not (texts and all(isinstance(text, str) for text in texts)):
        raise ValueError(
            f"{sanitized(repr(description), 80)} is not the description of a tokenizer: expected 'bytes' or a dict"
        )
    return "bytes" if description == "bytes" else sanitized(f"{texts[0]} (sha256 {texts[1][:12]})")


def _read_tokenizers(path: Path, content: bytes, end: str, pattern: str | None) -> tuple:
    if pattern is not None:
        raise ValueError(f"{sanitized(path)} contains its own pattern: omit --pattern")
    tokenizers = _require("tokenizers", path)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises plain Exception
        raise ValueError(f"{sanitized(path)} cannot be read by the package tokenizers: {sanitized(error)}") from None

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False)

    return encode, decode, tokenizer.get_vocab_size(), tokenizer.token_to_id(end)


def _read_tiktoken(path: Path, content: bytes, end: str, pattern: str | None) -> tuple:
    if pattern is None:
        raise ValueError(f"{sanitized(path)} does not contain the pattern that splits words: give it with --pattern")
    tiktoken, base64 = _require("tiktoken", path), import_module("base64")
    try:
        pairs = [line.split() for line in content.splitlines() if line]
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        end_id = max(ranks.values()) + 1
        encoding = tiktoken.Encoding(path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={end: end_id})
    except Exception as error:  # the package raises various exceptions
        raise ValueError(f"{sanitized(path)} cannot be read by the package tiktoken: {sanitized(error)}") from None
    return encoding.encode_ordinary, lambda ids: encoding.decode(list(ids)), end_id + 1, end_id


def _require(package: str, path: Path) -> ModuleType:
    try:
        return import_module(package)
    except ImportError:
        raise ValueError(f"{sanitized(path)} needs {package}: pip install 'crate_mm[text]'") from None

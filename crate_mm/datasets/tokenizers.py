"""Tokenizers: bytes, or a file of Hugging Face's tokenizers or of tiktoken."""

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
MAX_VOCAB = 2**16  # a token file has uint16
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
        """Return the token IDs of a text, ``(tokens,)``; raise ``ValueError`` for a text that is not accepted."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token IDs; a part of a character is U+FFFD."""


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
    """The tokenizer of a file: ``*.json`` of Hugging Face's tokenizers, or ``*.tiktoken``, base64 tokens with ranks.

    A checkpoint stores the name of the file and a hash, not the file.

    Args:
        path: the file.
        end: text of the token that ends a document. In a tiktoken file it gets the ID after the last one.
        pattern: regular expression that splits text into words; tiktoken's files do not contain theirs.

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
            raise ValueError(f"the tokenizer {sanitized(path)} must be *.json (of tokenizers) or *.tiktoken")
        self._encode, self.decode, self.vocab_size, end_id = read(path, content, end, pattern)
        if end_id is None:
            raise ValueError(
                f"the tokenizer {sanitized(path)} has no token {end!r} to end a document: name its own with --end TOKEN"
            )
        if self.vocab_size > MAX_VOCAB:
            raise ValueError(
                f"the tokenizer {sanitized(path)} has {self.vocab_size:,} tokens: a token file has uint16, at most "
                f"{MAX_VOCAB:,}"
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
    """Return the tokenizer 'bytes' or that of a file; see ``FileTokenizer``."""
    return ByteTokenizer() if name == "bytes" else FileTokenizer(name, end, pattern)


def tokenizer_of(description: Any, file: str | Path | None = None) -> Tokenizer:
    """Return the tokenizer that a checkpoint describes.

    Args:
        description: ``Tokenizer.description`` of the checkpoint's training, or None.
        file: the file of the tokenizer, or 'bytes'; a description of bytes needs none.

    Raises:
        ValueError: the description is missing or invalid and there is no file, or the file is another tokenizer.
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
        raise ValueError(f"the model was trained on tokens of {name}, which checkpoints do not contain: give its file")
    tokenizer = FileTokenizer(file, description["end"], description.get("pattern"))
    if tokenizer.description["sha256"] != description["sha256"]:
        raise ValueError(f"{sanitized(file)} is another tokenizer than {name}, on whose tokens the model was trained")
    return tokenizer


def tokenizer_name(description: Any) -> str:
    """Return the name of a described tokenizer for messages.

    Raises:
        ValueError: the description is not one of a tokenizer.
    """
    texts = [description.get(key) for key in ("name", "sha256", "end")] if isinstance(description, dict) else []
    if description != "bytes" and not (texts and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"{sanitized(repr(description), 80)} describes no tokenizer: expected 'bytes' or a dict")
    return "bytes" if description == "bytes" else sanitized(f"{texts[0]} (sha256 {texts[1][:12]})")


def _read_tokenizers(path: Path, content: bytes, end: str, pattern: str | None) -> tuple:
    if pattern is not None:
        raise ValueError(f"{sanitized(path)} contains its own pattern: omit --pattern")
    tokenizers = _require("tokenizers", path)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises Exception itself
        raise ValueError(f"{sanitized(path)} is not a file of tokenizers: {sanitized(error)}") from None

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
        raise ValueError(f"{sanitized(path)} is not a file of tiktoken: {sanitized(error)}") from None
    return encoding.encode_ordinary, lambda ids: encoding.decode(list(ids)), end_id + 1, end_id


def _require(package: str, path: Path) -> ModuleType:
    try:
        return import_module(package)
    except ImportError:
        raise ValueError(f"{sanitized(path)} needs {package}: pip install 'crate_mm[text]'") from None

"""Tokenizers: bytes, and files that need a package."""

import base64
import hashlib
import json

import pytest

from crate_mm.datasets.tokenizers import ByteTokenizer, FileTokenizer, build_tokenizer, tokenizer_of

WORDS = {"a": 0, "b": 1, " ": 2, "ab": 3, "<|endoftext|>": 4}


@pytest.fixture
def words(tmp_path):
    """A file of tokenizers with the tokens of ``WORDS``."""
    pytest.importorskip("tokenizers")
    model = {"type": "BPE", "vocab": WORDS, "merges": ["a b"]}
    end = {"id": 4, "content": "<|endoftext|>", "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    (tmp_path / "words.json").write_text(json.dumps({"version": "1.0", "added_tokens": [end], "model": model}))
    return tmp_path / "words.json"


def test_bytes_are_their_own_tokens():
    tokenizer = ByteTokenizer()
    text = "né\n".encode()
    assert tokenizer.encode(text).tolist() == [110, 195, 169, 10]
    assert tokenizer.decode([110, 195, 169, 10]) == "né\n"
    assert tokenizer.decode([195]) == "\ufffd"
    assert tokenizer.encode(b"\xff").tolist() == [255]  # need not be UTF-8


def test_a_file_of_tokenizers_is_read(words):
    tokenizer = build_tokenizer(words)
    assert tokenizer.encode(b"ab a").tolist() == [3, 2, 0]
    assert (tokenizer.end, tokenizer.vocab_size) == (4, 5)
    digest = hashlib.sha256(words.read_bytes()).hexdigest()
    assert tokenizer.description == {
        "name": "words.json", "sha256": digest, "vocab_size": 5, "end": "<|endoftext|>"
    }  # fmt: skip
    assert tokenizer_of(tokenizer.description, words).end == 4
    with pytest.raises(ValueError, match=r"byte 1 is not UTF-8: convert the text to UTF-8, or use .* 'bytes'"):
        tokenizer.encode(b"a\xff")
    with pytest.raises(ValueError, match=r"has no token '</s>' to end a document"):
        FileTokenizer(words, end="</s>")
    with pytest.raises(ValueError, match=r"is not the tokenizer that the model was trained with, words.json"):
        tokenizer_of({**tokenizer.description, "sha256": "0" * 64}, words)


def test_a_file_of_tiktoken_is_read_with_its_pattern(tmp_path):
    pytest.importorskip("tiktoken")
    file = tmp_path / "words.tiktoken"
    file.write_bytes(
        b"\n".join(base64.b64encode(t) + f" {n}".encode() for n, t in enumerate((b"a", b"b", b" ", b"ab")))
    )
    with pytest.raises(ValueError, match=r"does not contain the pattern that splits words: give it with --pattern"):
        FileTokenizer(file)
    tokenizer = FileTokenizer(file, pattern=r"\w+|\s+")
    assert tokenizer.encode(b"ab a").tolist() == [3, 2, 0]
    assert (tokenizer.end, tokenizer.vocab_size, tokenizer.decode([3, 2, 0])) == (4, 5, "ab a")
    assert tokenizer_of(tokenizer.description, file).end == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: build_tokenizer(at / "none.json"), r"none.json cannot be read: No such file"),
        (lambda at: build_tokenizer(at / "words.txt"), r"words.txt must be \*.json"),
        (lambda at: tokenizer_of(None), r"does not name its tokenizer: give it with --tokenizer"),
        (lambda at: tokenizer_of("bytes", "a.json"), r"was trained on bytes, not on tokens of a.json"),
        (
            lambda at: tokenizer_of({"name": "a", "sha256": "b", "end": "c"}),
            r"a \(sha256 b\), which checkpoints do not",
        ),
        (lambda at: tokenizer_of({"name": 1}), r"is not the description of a tokenizer: expected 'bytes' or a dict"),
        (lambda at: tokenizer_of("gpt2"), r"'gpt2' is not the description of a tokenizer"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_a_sentence(tmp_path, make, message):
    (tmp_path / "words.txt").touch()
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"a.json needs tokenizers: pip install 'crate_mm\[text\]'"):
        build_tokenizer(tmp_path / "a.json")

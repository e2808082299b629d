"""Texts as tokens: which file belongs to which split, what a window of bytes has, and token files that are refused."""

import json
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from crate_mm.datasets import PythonLibrary, TextFiles, Windows
from crate_mm.datasets.text import documents, is_validation, library_files, split_files, text_files, write_tokens
from crate_mm.datasets.tokenizers import ByteTokenizer

NAMES = [f"part{n % 3}/text{n}.txt" for n in range(120)]


@pytest.fixture
def texts(tmp_path):
    """Texts in three folders; text n is n % 9 + 1 times its name."""
    for n, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name * (n % 9 + 1))
    (tmp_path / ".hidden").write_text("x")
    return tmp_path


def test_the_split_depends_on_the_relative_path_alone(texts):
    assert text_files(texts) == sorted(NAMES)
    assert [is_validation(name, 0.5) for name in ("os.py", "json/encoder.py", "sched.py")] == [False, True, True]
    train, val = (split_files(text_files(texts), split, 0.2) for split in ("train", "val"))
    assert sorted(train + val) == sorted(NAMES)
    assert 12 <= len(val) <= 36
    assert set(split_files(text_files(texts), "val", 0.1)) <= set(val)


def test_a_document_is_its_bytes_and_a_zero(texts):
    data = TextFiles(str(texts), 5, "val")
    names = split_files(sorted(NAMES), "val", 0.05)
    expected = b"".join((texts / name).read_bytes() + b"\0" for name in names)
    assert bytes(data.tokens) == expected
    assert data.metainfo == {"classes": None, "tokenizer": "bytes", "bytes": len(expected), "tokens": len(expected)}
    assert data.largest_id() == max(expected)


def test_each_token_counts_once_with_a_last_window_that_overlaps():
    data = Windows(np.arange(24), 7, drop_last=False)  # 23 labels: 3 windows and a rest of 2
    assert len(data) == 4
    labels = torch.cat([data[n]["labels"] for n in range(4)])
    assert labels[labels >= 0].tolist() == list(range(1, 24))
    assert data[3]["inputs"].tolist() == list(range(16, 23))
    assert data[3]["labels"].tolist() == [-100] * 5 + [22, 23]
    assert len(Windows(np.arange(22), 7, drop_last=False)) == len(Windows(np.arange(22), 7)) == 3


def test_a_random_window_is_that_of_its_seed_or_position():
    data = Windows(np.arange(12), 3, random_windows=500)
    assert len(data) == 500
    assert data[7, 5]["inputs"].tolist() == data[8, 5]["inputs"].tolist()
    assert data[7]["inputs"].tolist() == data[3, 7]["inputs"].tolist()
    starts = [data[0, seed]["inputs"][0].item() for seed in range(500)]
    assert set(starts) == set(range(9))  # the last label is the last token
    assert data[0, 1]["labels"].tolist() == [start + 1 for start in data[0, 1]["inputs"].tolist()]


def test_pythons_library_is_split_and_without_tables():
    train, val = PythonLibrary(64), PythonLibrary(64, "val", random_windows=3)
    assert len(val) == 3
    assert 10 * len(val.tokens) < len(train.tokens)
    names = library_files(Path(sysconfig.get_path("stdlib")))
    assert {"os.py", "json/encoder.py"} <= set(names)
    assert not [name for name in names if name.startswith(("encodings/", "test/", "tkinter/"))]
    assert all(name.split("/")[0].removesuffix(".py") in sys.stdlib_module_names for name in names)


def test_a_token_file_is_described(texts, tmp_path):
    names = sorted(NAMES)[:3]
    path, texts_bytes = tmp_path / "t.bin", [(texts / name).read_bytes() for name in names]
    described = write_tokens(path, documents([(texts, names)], ByteTokenizer()), ByteTokenizer())
    data = Windows(path, 4)
    assert data.tokens.tolist() == list(b"\0".join([*texts_bytes, b""]))
    size = sum(map(len, texts_bytes)) + 3
    assert json.loads((tmp_path / "t.bin.json").read_text()) == described
    assert described == dict(
        tokenizer="bytes", vocab_size=256, documents=3, bytes=size, tokens=size, largest_id=data.tokens.max()
    )
    assert (data.largest_id(), data.vocab_size) == (described["largest_id"], 256)
    assert data.metainfo == {"classes": None, "tokenizer": "bytes", "bytes": size, "tokens": size}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda at: (at / "t.bin").write_bytes(b"ab" * 50),
            r"t.bin has 50 tokens, but t.bin.json says .*: the file was truncated",
        ),
        (lambda at: (at / "t.bin").write_bytes(b"a" * 51), r"t.bin has 51 bytes: expected an even number"),
        (lambda at: (at / "t.bin.json").write_text("[1"), r"t.bin.json is not the description of a token file"),
        (lambda at: (at / "t.bin.json").write_text("[1]"), r"expected the integers vocab_size, largest_id, documents"),
    ],
)
def test_a_token_file_that_is_cut_off_is_refused(texts, tmp_path, spoil, message):
    write_tokens(tmp_path / "t.bin", documents([(texts, NAMES[:3])], ByteTokenizer()), ByteTokenizer())
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        Windows(tmp_path / "t.bin", 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: TextFiles(None, 4), r"data_root is not set: give the folder of the text files"),
        (lambda at: TextFiles(str(at / "none"), 4), r"none does not exist or is not a folder"),
        (lambda at: TextFiles(str(at), 4, pattern="*.md"), r"has no file \*\.md"),
        (lambda at: TextFiles(str(at), 4, "test"), r"split must be 'train' or 'val', got 'test'"),
        (
            lambda at: TextFiles(str(at), 4, "val", "*text1.txt"),
            r"none of the 1 files belongs to .* another --val-fraction",
        ),
        (lambda at: split_files(NAMES, "val", 2), r"val_fraction must be a float between 0 and 1, got 2"),
        (lambda at: TextFiles(str(at), 10**6), r"the array has [\d,]+ tokens: a window of 1000000"),
        (lambda at: Windows(np.arange(9), 2, random_windows=0), r"random_windows must be a positive integer or None"),
    ],
)
def test_what_gives_no_windows_is_refused(texts, make, message):
    with pytest.raises(ValueError, match=message):
        make(texts)


def test_a_file_with_a_zero_is_no_text(texts):
    (texts / NAMES[0]).write_bytes(b"a\0b")
    with pytest.raises(ValueError, match=r"text0.txt is not a text: it contains the byte 0"):
        list(documents([(texts, NAMES)], ByteTokenizer()))

"""crate-mm pack-text: what it writes, how it splits, and what it refuses."""

import json

import numpy as np
import pytest

from crate_mm.datasets.text import is_validation

NAMES = [f"{number}.txt" for number in range(30)]


@pytest.fixture
def texts(tmp_path):
    for name in NAMES:
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"text {name}\n")
    return tmp_path / "texts"


def stream(names, folder):
    return list(b"".join((folder / name).read_bytes() + b"\0" for name in names))


def test_files_are_split_by_their_names(texts, tmp_path, run_tool):
    done = run_tool("pack_text", texts, tmp_path / "packed", "--val-fraction", 0.3)
    assert done.code == 0, done.output
    for split in ("train", "val"):
        names = sorted(name for name in NAMES if is_validation(name, 0.3) == (split == "val"))
        packed = np.fromfile(tmp_path / "packed" / f"{split}.bin", np.uint16).tolist()
        assert packed == stream(names, texts)
        counts = json.loads((tmp_path / "packed" / f"{split}.bin.json").read_text())
        assert (counts["documents"], counts["bytes"], counts["tokens"]) == (len(names), len(packed), len(packed))
        assert f"{split}.bin: {len(names)} documents, {len(packed):,} bytes, {len(packed):,} tokens" in done.output
    again = run_tool("pack_text", texts, tmp_path / "packed")
    assert (again.code, "train.bin exists: --force overwrites it" in again.last_line) == (2, True)


def test_files_for_validation_are_named(texts, tmp_path, run_tool):
    files = [texts / name for name in NAMES[:3]]
    done = run_tool("pack_text", *files[:2], tmp_path / "packed", "--val", files[2])
    assert done.code == 0, done.output
    for split, names in (("train", NAMES[:2]), ("val", NAMES[2:3])):
        assert np.fromfile(tmp_path / "packed" / f"{split}.bin", np.uint16).tolist() == stream(names, texts)


def test_what_is_no_text_is_refused(texts, tmp_path, run_tool):
    target = tmp_path / "packed"
    for args, said in (
        ((tmp_path / "none", target), "none does not exist or is not a folder: expected a folder of text files"),
        ((texts, target, "--glob", "*.md"), "has no file *.md"),
        ((texts, target, "--tokenizer", "words.json"), "the tokenizer words.json cannot be read"),
        ((texts / "0.txt", target), "none of the 1 files belongs to the split 'val'"),
    ):
        done = run_tool("pack_text", *args, cwd=tmp_path)
        assert (done.code, said in done.last_line, "Traceback" in done.output) == (2, True, False), done.output
    (texts / NAMES[0]).write_bytes(b"\0")
    done = run_tool("pack_text", texts, target)
    assert (done.code, "0.txt is not a text" in done.last_line) == (2, True), done.output
    assert not list(target.glob("train.bin*"))

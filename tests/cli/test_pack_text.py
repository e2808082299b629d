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


def test_files_are_split_by_their_names(texts, tmp_path, run_main):
    done = run_main("pack_text", texts, tmp_path / "packed", "--val-fraction", 0.3)
    for split in ("train", "val"):
        names = sorted(name for name in NAMES if is_validation(name, 0.3) == (split == "val"))
        packed = np.fromfile(tmp_path / "packed" / f"{split}.bin", np.uint16).tolist()
        assert packed == stream(names, texts)
        counts = json.loads((tmp_path / "packed" / f"{split}.bin.json").read_text())
        assert (counts["documents"], counts["bytes"], counts["tokens"]) == (len(names), len(packed), len(packed))
        assert f"{split}.bin: {len(names)} documents, {len(packed):,} bytes, {len(packed):,} tokens" in done.output
    again = run_main("pack_text", texts, tmp_path / "packed", code=2)
    assert "train.bin exists: --force overwrites it" in again.last_line


def test_files_for_validation_are_named(texts, tmp_path, run_main):
    """Also if they are in a folder of the others: no text is for both."""
    done = run_main("pack_text", texts, tmp_path / "packed", "--val", texts / NAMES[2], texts / NAMES[5])
    val = [NAMES[2], NAMES[5]]
    for split, names in (("train", sorted(set(NAMES) - set(val))), ("val", val)):
        assert np.fromfile(tmp_path / "packed" / f"{split}.bin", np.uint16).tolist() == stream(names, texts)
    done = run_main("pack_text", texts / NAMES[2], tmp_path / "none", "--val", texts, code=2)
    assert "no file is left for training" in done.last_line


def test_a_refused_file_leaves_no_token_file(texts, tmp_path, run_main):
    (texts / NAMES[0]).write_bytes(b"\0")
    done = run_main("pack_text", texts, tmp_path / "packed", code=2)
    assert "0.txt is not a text" in done.last_line
    assert not list((tmp_path / "packed").glob("train.bin*"))

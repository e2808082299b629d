"""Windows of tokens: which tokens a sample has, and what is refused."""

import pickle

import numpy as np
import pytest
import torch

from crate_mm.datasets import Windows
from tests.training import assert_identical


@pytest.fixture
def tokens(tmp_path):
    """A file of 1000 tokens, each the one before it plus one or two, modulo 16."""
    steps = np.random.default_rng(0).integers(1, 3, 1000)
    (steps.cumsum() % 16).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    return tmp_path / "tokens.bin"


def test_windows_are_what_the_file_has_with_the_next_token(tokens):
    data, stream = Windows(tokens.name, 7, 16, root=str(tokens.parent)), np.fromfile(tokens, np.uint16)
    assert len(data) == 142  # and the token after the last one
    for position in (0, 141):
        sample, start = data[position], 7 * position
        assert sample["inputs"].tolist() == stream[start : start + 7].tolist()
        assert sample["labels"].tolist() == stream[start + 1 : start + 8].tolist()
        assert sample["inputs"].dtype == sample["labels"].dtype == torch.int64
        assert sample["sample_idx"] == position
        for name, field in data.spec.items():
            value = torch.as_tensor(sample[name])
            assert (value.dtype, tuple(value.shape)) == field
    assert "sample_seed" not in data[3]
    assert_identical(data[3, 5], {**data[3], "sample_seed": 5})
    assert (data.classes, data.labels()) == (None, None)
    assert data.describe(3) == f"tokens from 21 of {tokens}"
    assert_identical(Windows(stream.astype(np.int32), 7)[5], data[5])
    assert len(Windows(stream[:15], 7)) == 2
    assert len(list(data)) == 142


def test_a_worker_that_is_no_fork_maps_the_file_again(tokens):
    data = Windows(tokens, 7)
    stored = pickle.dumps(data)
    assert len(stored) < 1000
    assert_identical(pickle.loads(stored)[9], data[9])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: Windows(folder / "none.bin", 4),
            r"none.bin does not exist or is not a file: expected token IDs",
        ),
        (lambda folder: Windows(folder, 4), r"does not exist or is not a file"),
        (lambda folder: Windows(folder / "odd.bin", 4), r"odd.bin has 11 bytes: expected an even number"),
        (lambda folder: Windows(folder / "empty.bin", 4), r"empty.bin has 0 tokens: a window of 4 and .* need 5"),
        (lambda folder: Windows(np.arange(4), 4), r"the array has 4 tokens: a window of 4 and .* need 5"),
        (lambda folder: Windows(np.zeros(9), 4), r"expected an array of integers .*, got float64 of \(9,\)"),
        (lambda folder: Windows(np.zeros((9, 2), int), 4), r"expected an array of integers .*, got int64 of \(9, 2\)"),
        (lambda folder: Windows(np.arange(9), 0), r"length must be a positive integer, got 0"),
        (lambda folder: Windows(np.arange(9), 4, 7)[1], r"tokens from 4 of an array: ID 7 is outside the vocabulary"),
        (lambda folder: Windows(np.arange(9) - 1, 4, 9)[0], r"tokens from 0 of an array: ID -1 is outside the"),
    ],
)
def test_what_is_no_stream_of_tokens_is_refused_in_a_sentence(tmp_path, make, message):
    (tmp_path / "odd.bin").write_bytes(b"x" * 11)
    (tmp_path / "empty.bin").touch()
    with pytest.raises(ValueError, match=message):
        make(tmp_path)

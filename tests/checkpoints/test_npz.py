"""NumPy's files of weights: arrays of numbers alone, of the size that they say."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_mm.checkpoints import CheckpointError, read_checkpoint


def npy(array, **header):
    """An array as NumPy writes it, with parts of its header changed."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=True)
    data = stream.getvalue()
    size = struct.unpack("<H", data[8:10])[0]
    text, rest = data[10 : 10 + size].decode(), data[10 + size :]
    for key, value in header.items():
        old = {"shape": repr(array.shape), "descr": repr(array.dtype.str)}[key]
        text = text.replace(old, value)
    return data[:8] + struct.pack("<H", len(text)) + text.encode() + rest


def write(path, kind=zipfile.ZIP_STORED, **parts):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in parts.items():
            archive.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "i8", "?", "u1"])
def test_arrays_of_numbers_are_read(tmp_path, save, dtype):
    values = {"params/a": np.random.RandomState(0).rand(3, 4).astype(dtype), "b": np.asfortranarray(np.eye(3, 2))}
    save(tmp_path / "x.npz", **values, c=np.float32(3))
    weights = read_checkpoint(tmp_path / "x.npz")["state_dict"]
    assert weights.keys() == {"params/a", "b", "c"}
    np.testing.assert_array_equal(weights["params/a"].numpy(), values["params/a"])
    np.testing.assert_array_equal(weights["b"].numpy(), values["b"])
    assert weights["c"].shape == ()


def test_jaxs_bfloat16_has_two_bytes_of_anything(tmp_path):
    value = torch.randn(3, 4).bfloat16()
    np.savez(tmp_path / "x.npz", a=value.view(torch.int16).numpy().view("V2"))
    assert torch.equal(read_checkpoint(tmp_path / "x.npz")["state_dict"]["a"], value)


ONES = np.ones((2, 3))
WRONG = {
    "objects": (dict(a=npy(np.array([{}, 1], object))), "its a.npy holds object, not numbers"),
    "text": (dict(a=npy(np.array(["x"]))), "its a.npy holds <U1, not numbers"),
    "records": (dict(a=npy(np.zeros(2, "i4,f4"))), "not numbers"),
    "a larger shape": (dict(a=npy(ONES, shape="(2000000000, 3)")), "does not match its header"),
    "a smaller shape": (dict(a=npy(ONES, shape="(1, 3)")), "does not match its header"),
    "a negative shape": (dict(a=npy(ONES, shape="(-2, -3)")), "is damaged or not a checkpoint"),
    "code as header": (dict(a=npy(ONES, shape="__import__('os').system('true')")), "is damaged or not a checkpoint"),
    "no array": (dict(a=b"PK\3\4 text"), "is damaged or not a checkpoint"),
    "nothing": (dict(a=b""), "is damaged or not a checkpoint"),
    "long numbers": (dict(a=npy(np.ones(2, np.longdouble))), "which PyTorch does not support"),
}


@pytest.mark.parametrize("what", WRONG)
def test_whatever_else_is_refused(tmp_path, what):
    parts, message = WRONG[what]
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write(tmp_path / "x.npz", **parts))


def test_a_small_file_takes_little_memory(tmp_path):
    file = write(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, a=npy(np.zeros(2_000_000)))
    assert file.stat().st_size < 40_000
    with pytest.raises(CheckpointError, match=r"its 1 arrays need 16,000,\d+ bytes, far more than the file's size"):
        read_checkpoint(file)


def test_two_arrays_of_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy(ONES))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", npy(ONES))
    with pytest.raises(CheckpointError, match="two of its arrays have the same name"):
        read_checkpoint(tmp_path / "x.npz")


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_a_changed_byte_is_a_sentence_or_no_matter(tmp_path_factory, place, byte, cut):
    file = tmp_path_factory.getbasetemp() / "changed.npz"
    np.savez(file, a=np.arange(12.0).reshape(3, 4), b=np.float32(1))
    data = bytearray(file.read_bytes())
    data[place % len(data)] = byte
    file.write_bytes(data[: place % len(data)] if cut else data)
    try:
        contents = read_checkpoint(file)
    except CheckpointError as error:
        assert "changed.npz" in str(error)
    else:
        assert all(isinstance(value, torch.Tensor) for value in contents["state_dict"].values())

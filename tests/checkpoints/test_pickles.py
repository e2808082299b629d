"""What a checkpoint's pickle asks for is compared with the file before PyTorch reads it."""

import argparse
import gzip
import io
import pickle
import resource
import struct
import tarfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_mm.engine import CheckpointError, read_checkpoint

# The three pickles with which PyTorch's format before version 1.6 begins.
HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
KEY = b"}X\x01\x00\x00\x00a"  # {'a': ...


def old_format(contents: bytes) -> bytes:
    """A file of the old format whose contents is {'a': what these instructions make}."""
    return HEAD + b"\x80\x02" + KEY + contents + b"s." + pickle.dumps([], 2)


def hashed_for_ever(levels: int) -> bytes:
    body = b"K\x01\x85"
    for i in range(levels):
        body += b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86"
    return HEAD + b"\x80\x02}" + body + b"K\x01s." + pickle.dumps([], 2)


def storage(kind: bytes, numbers: bytes) -> bytes:
    """The instructions for a storage of so many numbers."""
    return b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + numbers + b"NtQ"


def tensor(stored: bytes, shape: bytes, strides: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\x00" + shape + strides + b"\x89N\x74R"


TEXT = b"X\x00\x00\x01\x00" + b"x" * 2**16 + b"q\x01"
SIZES = b"(" + b"K\x01" * 50_000 + b"tq\x01ctorch\nSize\nq\x000" + 2000 * b"h\x00h\x01\x85R0"
GIGA = b"J\x00\xca\x9a;"  # 1,000,000,000
AMPLIFIED = {
    "bytearray": old_format(b"c__builtin__\nbytearray\n" + GIGA + b"\x85R"),
    "torch.Tensor": old_format(b"ctorch\nTensor\n" + GIGA + b"\x85R"),
    "FloatTensor": old_format(b"ctorch\nFloatTensor\n" + GIGA + b"\x85\x81"),
    "a storage": old_format(storage(b"FloatStorage", GIGA)),
    "a shape": old_format(tensor(storage(b"FloatStorage", b"K\x01"), GIGA + b"\x85", b"K\x01\x85")),
    "strides": old_format(tensor(storage(b"FloatStorage", b"K\x01"), b"K\x02\x85", GIGA + b"\x85")),
    "hashes": hashed_for_ever(60),
    "tuples in tuples": old_format(b"K\x01" + b"\x85" * 1_000_000),
    "sizes": old_format(SIZES + b"0K\x01"),
    "copies": old_format(TEXT + b"c_codecs\nencode\nq\x000" + 50 * b"h\x00h\x01\x85R0"),
}


def refusal_of(file) -> tuple[str, float, float]:
    """The sentence, the seconds and the megabytes that it takes."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    seconds = time.perf_counter() - start
    return str(caught.value), seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def nested(codec: bytes, levels: int) -> bytes:
    """The encoding of an encoding, over and over."""
    call = b"c_codecs\nencode\n("
    return (
        call * levels
        + b"X\x01\x00\x00\x00A"
        + b"X"
        + len(codec).to_bytes(4, "little")
        + codec
        + b"tR" * 1
        + (b"X" + len(codec).to_bytes(4, "little") + codec + b"tR") * (levels - 1)
    )


NAMESPACE = b"cargparse\nNamespace\n)\x81"
TENSOR = tensor(storage(b"ByteStorage", b"K\x04"), b"K\x04\x85", b"K\x01\x85")
NOT_AS_WRITTEN = {
    "a codec": nested(b"hex", 1),
    "codecs in codecs": nested(b"hex", 30),
    "a slow codec": nested(b"punycode", 1),
    "bytes of a number in a tensor": b"c__builtin__\nbytearray\n" + TENSOR + b"\x85R",
    "a set of a tensor": b"c__builtin__\nset\n" + TENSOR + b"\x85R",
    "a size of a tensor": b"ctorch\nSize\n" + TENSOR + b"\x85R",
    "a counter of a tensor": b"ccollections\nCounter\n" + TENSOR + b"\x85R",
    "a dict of pairs": b"ccollections\nOrderedDict\n]\x85R",
    "a large key": b"}\x8a\x0a" + (2**61 - 1).to_bytes(10, "little") + b"K\x01s",
    "a tuple as key": b"}K\x01\x85K\x01s",
    "a real key": b"}G" + bytes(8) + b"K\x01s",
    "attributes": b"ccollections\nOrderedDict\n)R}X\x06\x00\x00\x00valuesK\x05sb",
    "attributes of a list": b"]}b",
    "a thousand dimensions": tensor(storage(b"FloatStorage", b"K\x01"), *[b"(" + b"K\x01" * 1000 + b"t"] * 2),
    # A Namespace is created empty and filled once.
    "arguments of its own": b"cargparse\nNamespace\nK\x01\x85\x81",
    "a call": b"cargparse\nNamespace\n)R",
    "names twice": NAMESPACE + b"}X\x01\x00\x00\x00bK\x01sb}X\x01\x00\x00\x00cK\x01sb",
    "a list of names": NAMESPACE + b"]b",
    "a number as name": NAMESPACE + b"}K\x01K\x01sb",
    "a name in a list": b"]" + NAMESPACE + b"a",
    "a Namespace in it": NAMESPACE + b"}X\x01\x00\x00\x00b" + NAMESPACE + b"sb",
    "the class": b"cargparse\nNamespace\n",
    "a tensor's class made": b"ctorch\nSize\n)\x81",
    "its names again and again": b"](}("
    + b"".join(b"X\x04\x00\x00\x00%04dK\x01" % i for i in range(999))
    + b"uq\x01"
    + 2000 * (NAMESPACE + b"h\x01b")
    + b"e",
}


@pytest.mark.parametrize("what", [*AMPLIFIED, *NOT_AS_WRITTEN])
def test_what_pickling_does_not_write_takes_little_memory_and_time(tmp_path, what):
    file = tmp_path / "x.pth"
    file.write_bytes(AMPLIFIED.get(what) or old_format(NOT_AS_WRITTEN[what]))
    sentence, seconds, megabytes = refusal_of(file)
    assert ("x.pth is " if what in AMPLIFIED else "x.pth is not a checkpoint: it ") in sentence
    assert seconds < 10
    assert megabytes < 200


def test_storages_that_are_named_and_not_there_are_no_memory_of_the_process(tmp_path):
    """PyTorch would leave them as the memory was."""
    (tmp_path / "x.pth").write_bytes(old_format(TENSOR) + bytes(100))
    with pytest.raises(CheckpointError, match="it does not hold the storages that it names"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_view_before_its_storage_is_refused(tmp_path):
    view = storage(b"ByteStorage", b"K\x04").replace(b"NtQ", b"X\x01\x00\x00\x00vJ\xff\xff\xff\xffK\x02\x87tQ")
    (tmp_path / "x.pth").write_bytes(old_format(tensor(view, b"K\x02\x85", b"K\x01\x85")) + bytes(100))
    with pytest.raises(CheckpointError, match="it has a view beyond its storage"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_compressed_tar_archive_is_not_unpacked(tmp_path):
    header = bytearray(512)
    header[124:136] = b"%011o\0" % 300_000_000
    header[156:157] = b"L"
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.pth").write_bytes(gzip.compress(header) + 300 * gzip.compress(bytes(1_000_000)))
    _, seconds, megabytes = refusal_of(tmp_path / "x.pth")
    assert (seconds < 5, megabytes < 100) == (True, True)


def two_in_one(file, python_sees: bytes, pytorch_sees: bytes) -> None:
    """An archive with two tables of contents: Python takes the last, PyTorch the one that the end names."""

    def split(data: bytes) -> tuple[bytes, bytes, int]:
        end = data.rfind(b"PK\5\6")
        count, size, offset = struct.unpack("<HII", data[end + 10 : end + 20])
        return data[:offset], data[offset : offset + size], count

    (entries, table, count), (other_entries, other_table, other_count) = split(python_sees), split(pytorch_sees)
    assert (count, len(table)) == (other_count, len(other_table))
    begin = len(other_entries) + len(other_table)
    moved = bytearray(table)
    shift = begin + len(entries) - len(other_entries)  # what Python adds to each place
    at = 0
    while at < len(moved):
        name, extra, comment = struct.unpack("<HHH", moved[at + 28 : at + 34])
        (place,) = struct.unpack("<I", moved[at + 42 : at + 46])
        moved[at + 42 : at + 46] = struct.pack("<i", begin + place - shift) if begin + place >= shift else bytes(4)
        at += 46 + name + extra + comment
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(table), len(other_entries), 0)
    file.write_bytes(other_entries + other_table + entries + bytes(moved) + end)


def test_an_archive_is_read_as_pytorch_reads_it(tmp_path):
    plain, evil = io.BytesIO(), io.BytesIO()
    for stream, contents in ((plain, b"}"), (evil, KEY + b"K\x07s")):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + contents + b".")
            archive.writestr("a/version", "3\n")
    two_in_one(tmp_path / "x.pth", plain.getvalue(), evil.getvalue())
    with pytest.raises(CheckpointError, match="table of contents is not where PyTorch writes it"):
        read_checkpoint(tmp_path / "x.pth")


def lying_archive(file, numbers: int) -> None:
    """A checkpoint of one tensor of four numbers that says its storage has more, which PyTorch would read."""
    torch.save({"state_dict": {"w": torch.zeros(4)}}, file)
    with zipfile.ZipFile(file) as whole:
        parts = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as changed:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                assert data.count(b"K\x04") == 2  # of the storage and of the tensor
                data = data.replace(b"K\x04", b"M" + numbers.to_bytes(2, "little"))
            changed.writestr(name, data)


@pytest.mark.parametrize("numbers", [1, 5, 60_000])
def test_a_storage_of_another_size_than_is_there_is_refused(tmp_path, numbers):
    lying_archive(tmp_path / "x.pth", numbers)
    with pytest.raises(CheckpointError, match="the size of its storage 0 does not match its record"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("change", ["compressed", "twice", "in capitals too"])
def test_an_archive_that_pytorch_does_not_write_is_refused(tmp_path, change):
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as whole, zipfile.ZipFile(tmp_path / "x.pth", "w") as changed:
        for entry in whole.infolist():
            how = zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED
            changed.writestr(entry.filename, whole.read(entry), how)
            if change != "compressed" and entry.filename.endswith("data.pkl"):
                name = entry.filename if change == "twice" else entry.filename.upper()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of the name that is there twice
                    changed.writestr(name, whole.read(entry))
    with pytest.raises(CheckpointError, match=r"x.pth is damaged: the content of its part \S+ has changed"):
        read_checkpoint(tmp_path / "x.pth")


def test_the_format_that_can_run_code_in_spite_of_weights_only_never_reaches_pytorch(tmp_path, monkeypatch):
    """CVE-2025-32434: a tar archive, PyTorch's oldest format."""
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    with tarfile.open(tmp_path / "x.pth", "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"N."))
    with pytest.raises(CheckpointError, match=r"x.pth is damaged or not a checkpoint: it is a tar archive"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_tar_archive_that_begins_as_a_pickle_does_not_either(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    whole = HEAD + pickle.dumps({}, 2) + pickle.dumps([], 2)
    header = bytearray(512)
    header[: len(whole[:90])] = whole[:90]
    header[257:265] = b"ustar\x0000"
    header[100:108], header[124:136], header[156:157] = b"0000644\0", b"00000000000\0", b"0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.pth").write_bytes(bytes(header) + bytes(1024))
    assert tarfile.is_tarfile(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="it is a tar archive"):
        read_checkpoint(tmp_path / "x.pth")


KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]
KINDS += [torch.complex64, torch.uint16, torch.float8_e4m3fn]


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "old format"])
def test_everything_that_our_checkpoints_and_others_hold_is_read(tmp_path, zipped):
    base = torch.arange(24.0)
    kinds = KINDS if zipped else KINDS[:-2]  # PyTorch does not read the newer ones in its old format
    weights = OrderedDict((str(kind), torch.ones(2, 3).to(kind)) for kind in kinds)
    weights |= {"view": base[2:8].view(2, 3), "transposed": base.view(4, 6).T, "empty": torch.zeros(0, 3)}
    weights |= {"scalar": torch.tensor(1.5), "parameter": torch.nn.Parameter(torch.ones(2)), "same": base}
    holds = {
        "state_dict": weights,
        "model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(),
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0)}},
            "param_groups": [{"betas": (0.9, 0.99), "params": [0]}],
        },
        "meta": {"epoch": 3, "time": "now", "numbers": [1, 2**40, 2**100, -1.5, True, None]},
        "others": {"b": b"bytes", "s": {1, 2}, "c": 1j, "milestones": Counter({3: 1}), "size": torch.Size([1, 2])},
        "kinds": [torch.float32, torch.device("cpu")],
    }
    torch.save(holds, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "x.pth")
    assert read["others"] == holds["others"]
    assert read["meta"] == holds["meta"]
    for name, value in weights.items():
        assert read["state_dict"][name].dtype == value.dtype
        assert torch.equal(read["state_dict"][name].to(torch.complex128), value.to(torch.complex128))
    assert read["model"].keys() == holds["model"].keys()


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(min_size=1),
            lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner),
            max_leaves=8,
        ),
        max_size=4,
    )
)
@pytest.mark.slow
def test_any_plain_data_is_read_as_it_was_written(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("plain") / "x.pth"
    torch.save({"other": data}, file)
    assert read_checkpoint(file)["other"] == data


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=60).map(bytes))
def test_any_instructions_end_in_a_sentence(tmp_path_factory, instructions):
    file = tmp_path_factory.getbasetemp() / "x.pth"
    file.write_bytes(old_format(instructions))
    try:
        read_checkpoint(file)
    except CheckpointError as error:
        assert "x.pth" in str(error)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_namespace_becomes_a_dict(tmp_path, zipped):
    args = argparse.Namespace(lr=1e-3, betas=(0.9, 0.95), names=["a"], none=None, weight=torch.ones(2))
    saved = {"model": {"a": torch.zeros(1)}, "args": args}
    torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "x.pth")["args"]
    assert type(read) is dict
    assert torch.equal(read.pop("weight"), args.weight)
    assert read == dict(lr=1e-3, betas=(0.9, 0.95), names=["a"], none=None)


@pytest.mark.parametrize("name", ["argparse.ArgumentParser", "argparse.FileType", "types.SimpleNamespace", "os.system"])
def test_nothing_else_is_allowed_with_it(tmp_path, name):
    module, _, name = name.rpartition(".")
    code = b"c" + module.encode() + b"\n" + name.encode() + b"\n)\x81"
    (tmp_path / "x.pth").write_bytes(old_format(code))
    with pytest.raises(CheckpointError, match="is refused: loading it would run code from the file"):
        read_checkpoint(tmp_path / "x.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()

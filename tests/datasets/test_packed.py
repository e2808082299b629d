"""The index of packed images: mapped, with numbers of few bits, and the same whatever they are."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from crate_mm.datasets import PackedImages, packed, shards
from crate_mm.datasets.shards import INDEX, write_index, write_shard, write_shards

COUNT = 700  # more than 255 shards, labels and bytes of names


@pytest.fixture
def samples() -> list[tuple[str, bytes, int]]:
    rng = np.random.default_rng(0)
    return [(f"é/{n}.png", rng.bytes(int(rng.integers(0, 2000))), n % 300) for n in range(COUNT)]


@pytest.mark.parametrize(("narrow", "rows"), [(0, 1), (COUNT + 1, 256)])
def test_numbers_of_few_bits_say_the_same(tmp_path, monkeypatch, samples, narrow, rows):
    monkeypatch.setattr(shards, "NARROW", narrow)
    monkeypatch.setattr(packed, "ROWS", rows)
    (tmp_path / "train").mkdir()
    assert write_shards(tmp_path / "train", samples, [str(n) for n in range(300)], shard_bytes=6000) == COUNT
    pack = PackedImages(tmp_path)
    assert len(pack.files) > 255
    sizes = {name: getattr(pack, name).dtype.itemsize for name in ("shard", "offset", "size", "labels")}
    wanted = dict(shard=2, offset=2, size=2, labels=2) if narrow == 0 else dict.fromkeys(sizes, 8)
    assert sizes == wanted
    for i, (name, data, label) in enumerate(samples):
        assert (pack.path(i), *pack.read(i)) == (name, data, label)


def test_the_index_is_not_in_the_memory_of_a_process(tmp_path, samples):
    (tmp_path / "train").mkdir()
    write_shards(tmp_path / "train", samples, [str(n) for n in range(300)])
    pack = PackedImages(tmp_path)
    assert str(tmp_path / "train" / INDEX) in Path("/proc/self/maps").read_text()
    for column in (pack.shard, pack.offset, pack.size, pack.labels, pack._ends, pack._names):
        assert not column.flags.owndata
    travelling = pickle.dumps(pack)
    assert len(travelling) < 10_000
    assert pickle.loads(travelling).read(5) == samples[5][1:]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"", lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]],
)
def test_each_byte_of_an_index_is_checked(tmp_path, samples, damage):
    (tmp_path / "train").mkdir()
    write_shards(tmp_path / "train", samples, [str(n) for n in range(300)])
    file = tmp_path / "train" / INDEX
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"index.npz is damaged \(.*\): pack the images again"):
        PackedImages(tmp_path)


def test_an_index_that_is_written_over_reads_nothing_else(tmp_path, samples):
    """Its rows were checked before."""
    (tmp_path / "train").mkdir()
    write_shards(tmp_path / "train", samples, [str(n) for n in range(300)])
    pack = PackedImages(tmp_path)
    file = tmp_path / "train" / INDEX
    data = file.read_bytes()
    offsets = pack.offset.tobytes()
    with open(file, "r+b") as index:  # in its place, which nobody should do
        index.seek(data.index(offsets))
        index.write(np.full(COUNT, 2**40).tobytes())
    with pytest.raises(OSError, match="was rewritten while it was in use"):
        pack.read(3)


def test_rows_of_files_and_of_memory_make_one_index(tmp_path, samples):
    """Shards without images are left out."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    given = []
    for number, part in enumerate(([], samples[:300], [], samples[300:])):
        keyed = [(i, *sample) for i, sample in enumerate(part)]
        rows = write_shard(tmp_path / f"shard-{number}.tar", keyed)
        shards.save_arrays(tmp_path / f"{number}.npz", rows)
        given.append((f"shard-{number}.tar", rows))
        assert shards.is_intact(tmp_path / f"shard-{number}.tar", tmp_path / f"{number}.npz")
    files = [(name, tmp_path / f"{number}.npz") for number, (name, _) in enumerate(given)]
    assert write_index(tmp_path / "one", given, ["a"]) == write_index(tmp_path / "two", files, ["a"]) == COUNT
    assert (tmp_path / "one" / INDEX).read_bytes() == (tmp_path / "two" / INDEX).read_bytes()
    with np.load(tmp_path / "one" / INDEX, allow_pickle=False) as index:
        assert np.unique(index["shard"]).tolist() == [0, 1]
        assert b'"shard-1.tar", "shard-3.tar"' in index["about"].tobytes()


def test_a_shard_that_is_cut_off_or_changed_is_not_whole(tmp_path, samples):
    shard, rows = tmp_path / "shard.tar", tmp_path / "rows.npz"
    shards.save_arrays(rows, write_shard(shard, [(0, *samples[0]), (1, *samples[1])]))
    data = shard.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames()[0] == "000000000.cls"
    assert shards.is_intact(shard, rows)
    for harmed in (data[:-1], data[:700] + bytes([data[700] ^ 1]) + data[701:], data + b"\0"):
        shard.write_bytes(harmed)
        assert not shards.is_intact(shard, rows)
    shard.write_bytes(data)
    assert not shards.is_intact(shard, tmp_path / "none.npz")
    rows.write_bytes(rows.read_bytes()[:-30])
    assert not shards.is_intact(shard, rows)

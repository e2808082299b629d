"""A packing that is cut off goes on, and parts make the whole: the same files to the byte, whatever happens."""

import argparse
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crate_mm.cli.pack_dataset import part
from crate_mm.datasets import ClassFolders, PackedImages
from crate_mm.extras.encoding import PREFETCH, encode_parallel
from crate_mm.extras.packing import MARKER, PLAN, ROWS
from crate_mm.io.files import FileLock
from tests.conftest import ROOT, Finished, start

TRAIN = 240


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A tree whose images of 27 kB make eight shards of a megabyte, with a broken one."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", TRAIN // 2), ("val", 20)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(root / split / name / f"{i:03d}.png")
    (root / "train/bee/050.png").write_bytes(b"no image")
    return root


class Packings:
    """Runs of the tool in processes of their own."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self.source, self.logs = folder, source, []

    def begin(self, target: str, *args):
        self.logs.append(self.folder / f"{len(self.logs)}.out")
        args = (self.source, self.folder / target, "--workers", 2, "--shard-mb", 1, *args)
        return start(ROOT / "tools/pack_dataset.py", args, self.logs[-1], ROOT, {})

    def run(self, target: str, *args) -> Finished:
        process = self.begin(target, *args)
        log = self.logs[-1]
        process.join(120)
        return Finished(process.exitcode, log.read_text())

    def begin_and_cut_off(self, target: str, more_than: int, number: signal.Signals):
        """A run that gets a signal once it has packed more shards than there were, and its loader's workers.

        It stands still while its shards are counted, so that it cannot pack the others meanwhile.
        """
        process, end = self.begin(target), time.time() + 60
        while process.is_alive():
            os.kill(process.pid, signal.SIGSTOP)
            workers, reached = children(process), len(self.rows(target)) > more_than
            if reached:
                os.kill(process.pid, number)
            os.kill(process.pid, signal.SIGCONT)
            if reached:
                break
            assert time.time() < end
            time.sleep(0.02)
        process.join(60)
        return process, workers

    def rows(self, target: str) -> dict[str, int]:
        """The shards that are done, each by the file that it is."""
        folder = self.folder / f"{target}.part"
        found = {f"{file.parent.name}/{file.stem}" for file in folder.glob(f"{ROWS}/*/*.npz")}
        return {name: (folder / f"{name}.tar").stat().st_ino for name in found}

    def files(self, target: str) -> dict[str, bytes]:
        folder = self.folder / target
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def packings(tmp_path, images) -> Packings:
    return Packings(tmp_path, images)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> dict[str, bytes]:
    """The files of a packing that nothing cut off."""
    packings = Packings(tmp_path_factory.mktemp("whole"), images)
    done = packings.run("whole")
    assert done.code == 0, done.output
    assert f"train: {TRAIN - 1} images" in done.output
    files = packings.files("whole")
    assert sorted(files)[:2] == ["train/index.npz", "train/shard-000000.tar"]
    assert len(files) >= 8
    return files


def children(process) -> list[int]:
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def all_end(processes: list[int], seconds: float = 20) -> bool:
    end = time.time() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        if time.time() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.slow
def test_a_packing_that_is_cut_off_goes_on(packings, whole, number):
    kept: dict[str, int] = {}
    for _ in range(3):
        process, workers = packings.begin_and_cut_off("pack", len(kept), number)
        if process.exitcode == 0:
            break
        assert process.exitcode == (130 if number == signal.SIGINT else -number)
        assert not (packings.folder / "pack").exists()
        now = packings.rows("pack")
        assert kept.items() <= now.items()  # none was written again
        kept = now
        assert all_end(workers)
        if number == signal.SIGINT:
            last = packings.logs[-1].read_text().strip().splitlines()[-1]
            assert last.endswith("shards are packed; run the same command again to resume")
            assert last.startswith(f"interrupted: {len(kept)} of ")
            assert "Traceback" not in packings.logs[-1].read_text()
    assert kept
    done = packings.run("pack")
    assert done.code == 0, done.output
    assert "shards are already complete" in done.output
    assert f"left out: {packings.source}/train/bee/050.png" in done.output.replace("\n", "")  # whoever met it
    assert packings.files("pack") == whole
    for name, inode in kept.items():
        assert (packings.folder / "pack" / f"{name}.tar").stat().st_ino == inode


@pytest.mark.slow
def test_parts_that_are_packed_at_once_make_the_whole(packings, whole):
    processes = [packings.begin("pack", "--part", f"{number}/3") for number in (1, 2, 3)]
    for process in processes:
        process.join(120)
    said = [log.read_text() for log in packings.logs]
    assert [process.exitcode for process in processes] == [0, 0, 0], said
    assert packings.files("pack") == whole
    assert sum(f"train: {TRAIN - 1} images" in text for text in said) == 1
    assert not (packings.folder / "pack.part").exists()


@pytest.mark.slow
def test_parts_of_several_disks_are_put_together_by_the_same_command(packings, whole):
    for number in (1, 2):
        done = packings.run(f"disk{number}", "--part", f"{number}/2")
        assert done.code == 0, done.output
        assert f"part {number} of 2 is packed; " in done.output
        shutil.copytree(packings.folder / f"disk{number}.part", packings.folder / "pack.part", dirs_exist_ok=True)
    done = packings.run("pack")
    assert done.code == 0, done.output
    assert packings.files("pack") == whole


@pytest.fixture(scope="module")
def half(tmp_path_factory, images) -> Path:
    packings = Packings(tmp_path_factory.mktemp("half"), images)
    assert packings.run("pack", "--part", "1/2").code == 0
    return packings.folder / "pack.part"


@pytest.fixture
def first_part(packings, half) -> Path:
    """The folder of a packing of which a half is done."""
    return shutil.copytree(half, packings.folder / "pack.part")


def change(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def harm_shards(folder: Path) -> None:
    change(folder / "train/shard-000000.tar")
    os.truncate(folder / "train/shard-000002.tar", 5000)
    (folder / "train/shard-000004.tar").unlink()


def harm_rows(folder: Path) -> None:
    rows = folder / ROWS / "train"
    change(rows / "shard-000000.npz")
    os.truncate(rows / "shard-000002.npz", 100)
    shutil.copy(rows / "shard-000006.npz", rows / "shard-000004.npz")


@pytest.mark.parametrize("harm", [harm_shards, harm_rows])
@pytest.mark.slow
def test_shards_that_are_not_intact_are_packed_again(packings, whole, first_part, harm):
    before = packings.rows("pack")
    for name in before:  # another name, so that no new file gets the number of a deleted one
        os.link(first_part / f"{name}.tar", packings.folder / name.replace("/", "-"))
    harm(first_part)
    (first_part / "train/.shard-000002.tar.0123abcd.part").write_bytes(b"of a killed process")
    done = packings.run("pack")
    assert done.code == 0, done.output
    assert packings.files("pack") == whole
    kept = {name for name, inode in before.items() if (packings.folder / "pack" / f"{name}.tar").stat().st_ino == inode}
    assert kept == {"train/shard-000006", "val/shard-000000"}


@pytest.mark.slow
def test_another_recipe_or_other_images_do_not_go_on(packings, images, first_part, tmp_path):
    before = packings.files("pack.part")
    done = packings.run("pack", "--short-side", 64)
    assert done.code == 2
    assert done.last_line.startswith(f"error: {first_part} was started with short_side None, now 64")
    packings.source = shutil.copytree(images, tmp_path / "more")
    shutil.copy(images / "val/ant/000.png", packings.source / "val/ant/more.png")
    done = packings.run("pack", "--part", "2/2")
    assert done.code == 2
    assert "was started with other images: use the same options and images, or delete it" in done.last_line
    assert packings.files("pack.part") == before | {f"{MARKER}-2-of-2": b""}
    (first_part / PLAN).write_text("{}")
    assert f"{PLAN} is damaged: delete {first_part} to start over" in packings.run("pack").last_line


@pytest.mark.slow
def test_a_part_of_another_packing_is_not_put_in(packings, first_part):
    """A copy of the wrong folder."""
    assert packings.run("other", "--part", "2/2", "--quality", 80).code == 0
    for split in ("train", "val"):
        for folder in (split, f"{ROWS}/{split}"):
            shutil.copytree(packings.folder / "other.part" / folder, first_part / folder, dirs_exist_ok=True)
    (first_part / ROWS / "train/shard-000000.npz").unlink()
    done = packings.run("pack", "--part", "1/2")
    assert done.code == 2
    assert "shard-000001.tar belongs to another packing: pack again, without --part" in done.last_line
    assert packings.run("pack").code == 0


@pytest.mark.parametrize(("held", "args"), [("", ("--part", "2/2")), ("-1-of-2", ()), ("-3-of-4", ("--part", "2/2"))])
@pytest.mark.slow
def test_nobody_packs_a_shard_that_another_may_be_packing(packings, first_part, held, args, monkeypatch):
    monkeypatch.setattr("crate_mm.extras.packing.PATIENCE", 0.2)  # the tools are forked off
    with FileLock(first_part / f"{MARKER}{held}"):
        done = packings.run("pack", *args)
    assert done.code == 2
    assert f"error: another process is packing into {first_part}" in done.last_line


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.slow
def test_a_kill_between_the_renaming_and_the_end_is_mended_by_the_same_command(packings, whole, removed, monkeypatch):
    def die(path) -> None:
        if removed:
            rmtree(path)
        os.kill(os.getpid(), signal.SIGKILL)

    rmtree = shutil.rmtree
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)  # the tools are forked off
        assert packings.run("pack").code == -signal.SIGKILL
    assert (packings.folder / "pack" / ROWS).exists() == (not removed)
    done = packings.run("pack", "--quality", 80)
    assert f"{packings.folder / 'pack'} was started with quality 90, now 80" in done.last_line
    done = packings.run("pack")
    assert done.code == 0, done.output
    assert f"train: {TRAIN - 1} images" in done.output
    assert packings.files("pack") == whole
    assert "already exists" in packings.run("pack").last_line


def test_a_part_that_is_none_is_told():
    for text in ("0/2", "2", "a/b", "1/0", "-1/2"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"expected I/N .*, got '{text}'"):
            part(text)


class Marked:
    """A source that leaves a mark for each image that is asked for."""

    def __init__(self, source: ClassFolders, folder: Path) -> None:
        self.source, self.folder = source, folder

    def path(self, index: int) -> str:
        (self.folder / str(index)).touch()
        return self.source.path(index)


@pytest.mark.slow
def test_processes_wait_for_who_writes(images, tmp_path):
    source = Marked(ClassFolders(images, "train"), tmp_path)
    results = encode_parallel(source, range(TRAIN), 2, None, 90)
    next(results)
    time.sleep(0.7)
    assert 1 < len(list(tmp_path.iterdir())) <= 1 + 2 * PREFETCH
    assert len(list(results)) == TRAIN - 1


def test_webdataset_reads_the_shards(packings, whole, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    for name, data in whole.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_bytes(data)
    pack = PackedImages(tmp_path / "pack")
    urls = [str(file) for file in pack.files]
    assert len(urls) > 4
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    assert len(read) == len(pack) == TRAIN - 1
    for (image, label), (wanted, wanted_label) in zip(read, pack):
        assert label == wanted_label
        assert np.array_equal(np.asarray(image), np.asarray(wanted))

"""Lists of files as bytes and numbers: what they hold, who makes them, and when they are made anew."""

import multiprocessing
import os
import pickle
import shutil
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MMLogger

from crate_mm.datasets import ClassFolders, ImageFiles, ImageNet
from crate_mm.datasets import cached_listing as kept
from crate_mm.datasets.image_folder import ImageFolder
from crate_mm.datasets.listing import Labels, Listing, build_columns
from crate_mm.datasets.mapped import Column, MappedArrays, save_arrays
from crate_mm.datasets.scan import sort_by_path, walk_tree

NAMES = st.sampled_from(["a", "b c", "é", "a.b", "a-b", "caf\udce9", "Z", "zz", "猫"])
RUNS = st.lists(st.tuples(NAMES, st.integers(-1, 70_000), st.lists(NAMES, max_size=4)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(runs=RUNS, data=st.data())
def test_a_listing_is_the_list_of_its_files(runs, data):
    runs = [(f"/top/{folder}", label, files) for folder, label, files in runs]
    wanted = [(f"{folder}/{name}", label) for folder, label, files in runs for name in files]
    listing = Listing("/top", build_columns("/top", runs))
    if wanted and data.draw(st.booleans()):
        numbers = data.draw(st.lists(st.integers(0, len(wanted) - 1)))
        listing, wanted = listing.subset(numbers), [wanted[number] for number in numbers]
    assert list(listing) == wanted
    assert listing == wanted
    assert [listing[i] for i in range(-len(wanted), 0)] == wanted
    part = data.draw(st.slices(len(wanted)))
    assert listing[part] == wanted[part]
    labels = [label for _, label in wanted]
    assert Labels(listing) == labels
    assert np.asarray(Labels(listing)).tolist() == labels
    assert [Labels(listing).count(label) for label in set(labels)] == [labels.count(label) for label in set(labels)]
    for beyond in (len(wanted), -len(wanted) - 1):
        with pytest.raises(IndexError):
            listing[beyond]


def test_a_listing_of_many_blocks():
    names = [f"{i}.png" for i in range(10_000)]
    listing = Listing("x", build_columns("x", [("x/a", 0, names), ("x/b", 1, names)]))
    assert list(listing) == [(f"x/{c}/{name}", label) for label, c in enumerate("ab") for name in names]
    assert listing[9_999:10_001] == [("x/a/9999.png", 0), ("x/b/0.png", 1)]


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(st.lists(st.sampled_from(["a", "a!", "a.b", "b", "B", "é"]), min_size=1, max_size=4), max_size=12)
)
def test_files_and_folders_come_in_the_order_of_their_paths(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("top")
    for parts in paths:
        (root.joinpath(*parts[:-1])).mkdir(parents=True, exist_ok=True)
        (root.joinpath(*parts[:-1]) / f"{parts[-1]}.png").touch()
    found = [Path(folder, name) for folder, names in sort_by_path(walk_tree(str(root))) for name in names]
    assert found == sorted(root.rglob("*.png"))


def test_arrays_are_numpys_and_the_same_bytes_each_time(tmp_path, monkeypatch):
    arrays = {"a": np.arange(70_000, dtype=np.uint32), "none": np.empty(0, np.int64), "b": np.array([-1, 5], np.int8)}
    save_arrays(tmp_path / "one.npz", arrays)
    parts = Column(
        np.dtype(np.uint32), 70_000, (arrays["a"][i : i + 999].astype(np.int64) for i in range(0, 70_000, 999))
    )
    monkeypatch.setattr(time, "localtime", lambda *args: time.gmtime(10**9))
    save_arrays(tmp_path / "two.npz", {**arrays, "a": parts})
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    mapped = MappedArrays(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz", allow_pickle=False) as loaded:
        for name, array in arrays.items():
            assert np.array_equal(mapped[name], array)
            assert np.array_equal(loaded[name], array)
            assert mapped[name].dtype == loaded[name].dtype == array.dtype
    with pytest.raises(ValueError, match="read-only"):
        mapped["a"][0] = 1


def test_mapped_arrays_travel_to_a_process_as_a_file_or_as_themselves(tmp_path):
    file = tmp_path / "one.npz"
    save_arrays(file, {"a": np.arange(10_000)})
    mapped = MappedArrays(file)
    travelling = pickle.dumps(mapped)
    assert len(travelling) < 1000
    assert np.array_equal(pickle.loads(travelling)["a"], np.arange(10_000))
    save_arrays(file, {"a": np.zeros(10_000, int)})
    assert np.array_equal(pickle.loads(pickle.dumps(mapped))["a"], np.arange(10_000))
    with pytest.raises(ValueError, match="was replaced while a process that needs it"):
        pickle.loads(travelling)


@pytest.fixture
def keeping(tmp_path, monkeypatch) -> Path:
    """Every tree counts as large; the folder of the listings, which is not there yet."""
    (tmp_path / "temporary").mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(kept, "MIN_FILES", 0)
    monkeypatch.setattr(kept, "TIME_RESOLUTION", 0.05)
    return tmp_path / "temporary" / f"crate_mm-{os.geteuid()}"


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("cat/1.png", "cat/2.png", "cat/notes.txt", "dog/below/3.png", "dog/4.png"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    return tmp_path / "tree"


@pytest.fixture
def scans(monkeypatch):
    """How many whole readings of trees there were, in all processes."""
    count, read = multiprocessing.Value("i"), kept._list

    def counted(*args):
        with count.get_lock():
            count.value += 1
        return read(*args)

    monkeypatch.setattr(kept, "_list", counted)
    return count


def names(folder: ImageFolder) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, folder.root), label) for path, label in folder.samples]


WANTED = [("cat/1.png", 0), ("cat/2.png", 0), ("dog/4.png", 1), ("dog/below/3.png", 1)]


@pytest.mark.slow
def test_one_process_of_several_lists_and_all_map_its_list(tree, keeping, scans, monkeypatch):
    read = kept._list
    monkeypatch.setattr(kept, "_list", lambda *args: (time.sleep(0.2), read(*args))[1])  # the others come meanwhile
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    time.sleep(0.1)  # the tree has settled

    def build():
        barrier.wait()
        folder = ImageFolder(tree)
        maps = Path("/proc/self/maps").read_text()
        results.put((names(folder), maps.count(".npz") > 0, folder.targets == [0, 0, 1, 1]))

    processes = [context.Process(target=build) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [(WANTED, True, True)] * 4
    assert scans.value == 1
    assert stat.S_IMODE(keeping.stat().st_mode) == 0o700


def test_a_list_is_kept_with_what_it_leaves_out(tree, keeping, scans, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        for _ in range(2):
            caplog.clear()
            assert names(ImageFolder(tree)) == WANTED
            assert [record.getMessage() for record in caplog.records] == [
                f"{tree}: excluded 1 files that are not images (1 .txt)"
            ]
    finally:
        logger.removeHandler(caplog.handler)
    before = scans.value
    assert ImageFiles(tree).files == sorted(tree.rglob("*.png"))  # another list of the same tree
    assert ImageFiles(tree).path(-1) == str(tree / "dog/below/3.png")
    assert scans.value == before + 1
    assert len(ClassFolders(tree, "train")) + len(ClassFolders(tree, "val")) == 4
    assert scans.value == before + 1


def put_back(tree: Path) -> None:
    before = (tree / "cat").stat()
    (tree / "cat/0.png").touch()
    os.utime(tree / "cat", ns=(before.st_atime_ns, before.st_mtime_ns))


def another_folder(tree: Path) -> None:
    shutil.copytree(tree / "cat", tree.parent / "other")
    (tree.parent / "other/1.png").unlink()
    time.sleep(0.1)
    shutil.rmtree(tree / "cat")
    (tree.parent / "other").rename(tree / "cat")


CHANGES = {
    "a file more": (lambda tree: (tree / "dog/below/9.png").touch(), [*WANTED, ("dog/below/9.png", 1)]),
    "a class more": (
        lambda tree: ((tree / "ant").mkdir(), (tree / "ant/1.png").touch()),
        [("ant/1.png", 0), *((path, label + 1) for path, label in WANTED)],
    ),
    "a folder less": (lambda tree: shutil.rmtree(tree / "dog/below"), WANTED[:3]),
    "a time that was set back": (put_back, [("cat/0.png", 0), *WANTED]),
    "another folder in its place": (another_folder, WANTED[1:]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_tree_is_noticed(tree, keeping, scans, change):
    time.sleep(0.1)
    assert names(ImageFolder(tree)) == WANTED
    assert names(ImageFolder(tree)) == WANTED
    assert scans.value == 1
    apply, wanted = CHANGES[change]
    apply(tree)
    assert names(ImageFolder(tree)) == wanted
    time.sleep(0.1)
    before = scans.value
    assert names(ImageFolder(tree)) == wanted
    assert scans.value == before


def test_a_folder_that_has_just_changed_is_read_again_later(tree, keeping, monkeypatch):
    """A file that comes within the same tick of the clock as the reading leaves no other time."""
    monkeypatch.setattr(kept, "TIME_RESOLUTION", 0.5)
    read, late = kept._list, []

    def and_a_file_comes(*args):
        found = read(*args)
        if not late:
            before = (tree / "cat").stat()
            (tree / "cat/late.png").touch()
            late.append(before.st_mtime_ns)
        return found

    monkeypatch.setattr(kept, "_list", and_a_file_comes)
    monkeypatch.setattr(kept, "_state", lambda status: [status.st_dev, status.st_ino, 0, 0])  # a clock without ticks
    (tree / "cat").touch()
    assert ("cat/late.png", 0) in names(ImageFolder(tree))


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "harm", [damage, lambda file: file.write_bytes(b""), lambda file: file.write_bytes(b"PK" * 99)]
)
def test_a_list_that_is_damaged_is_made_anew(tree, keeping, scans, harm):
    time.sleep(0.1)
    ImageFolder(tree)
    (file,) = keeping.glob("*.npz")
    harm(file)
    assert names(ImageFolder(tree)) == WANTED
    assert scans.value == 2


def others_may_read(keeping: Path) -> None:
    keeping.mkdir(mode=0o700)
    keeping.chmod(0o755)


def is_a_link(keeping: Path) -> None:
    (keeping.parent.parent / "elsewhere").mkdir(mode=0o700)
    keeping.symlink_to(keeping.parent.parent / "elsewhere")


def others_may_rename(keeping: Path) -> None:
    keeping.parent.chmod(0o777)


def is_another_users(keeping: Path) -> None:
    keeping.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("it takes root to give a folder away")
    os.chown(keeping, 12345, -1)


@pytest.mark.parametrize("planted", [others_may_read, is_a_link, others_may_rename, is_another_users])
def test_a_folder_that_is_not_the_users_alone_is_not_used(tree, keeping, scans, planted, caplog):
    planted(keeping)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        assert names(ImageFolder(tree)) == WANTED
    finally:
        logger.removeHandler(caplog.handler)
    assert f"each process lists {tree} on its own: " in caplog.text
    assert not list(keeping.parent.parent.rglob("*.npz"))


def test_where_folders_do_not_say_when_they_changed_nothing_is_kept(tree, keeping, scans, monkeypatch):
    time.sleep(0.1)
    monkeypatch.setattr(kept, "FILE_SYSTEMS", {"ext4 of another name"})
    for count in (1, 2):
        assert names(ImageFolder(tree)) == WANTED
        assert scans.value == count
    assert not list(keeping.glob("*.npz"))


def test_nothing_is_kept_of_a_small_tree_nor_written_into_any(image_tree, keeping, monkeypatch):
    before = sorted(image_tree.rglob("*"))
    monkeypatch.setattr(kept, "MIN_FILES", 12)
    assert len(ImageNet(str(image_tree))) == 12
    assert not keeping.exists()
    monkeypatch.setattr(kept, "MIN_FILES", 11)
    assert len(ImageNet(str(image_tree))) == 12
    assert list(keeping.glob("*.npz"))
    assert sorted(image_tree.rglob("*")) == before


def test_a_spawned_worker_reads_the_same_files(tree, keeping):
    time.sleep(0.1)
    folder = ImageFolder(tree)
    travelling = pickle.dumps(folder)
    (file,) = keeping.glob("*.npz")
    assert str(file).encode() in travelling
    (tree / "cat/0.png").touch()
    ImageFolder(tree)  # of a run that begins meanwhile
    assert names(pickle.loads(pickle.dumps(folder))) == WANTED

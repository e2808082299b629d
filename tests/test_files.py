"""Files that are there whole or not at all, and locks of processes that share a folder."""

import os
import stat

import pytest

from crate_mm.io.files import FileLock, atomic_file, is_partial_file


@pytest.fixture
def old(tmp_path):
    (tmp_path / "file").write_text("old")
    return tmp_path / "file"


def test_a_file_takes_the_place_of_the_old_one(old):
    with atomic_file(old, text=True) as file:
        file.write("new: caf\udce9\r\n")
        file.flush()
        assert old.read_text() == "old"
    assert old.read_bytes() == rb"new: caf\udce9" + b"\r\n"
    assert [p.name for p in old.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_one_and_nothing_else(old, error):
    with pytest.raises(type(error)), atomic_file(old) as file:
        file.write(b"ne")
        raise error
    assert old.read_text() == "old"
    assert [p.name for p in old.parent.iterdir()] == ["file"]


def test_it_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_file(tmp_path / "new") as file:
        file.write(b"new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_links_are_not_followed(old):
    link = old.with_name("link")
    link.symlink_to(old)
    old.with_name("link.part").symlink_to(old)
    with atomic_file(link) as file:
        file.write(b"new")
    assert old.read_text() == "old"
    assert not link.is_symlink()
    assert link.read_text() == "new"


def test_a_long_name_in_any_script_is_written(tmp_path):
    name = "あ" * 82 + ".csv"
    with atomic_file(tmp_path / name, text=True) as file:
        file.write("x")
    assert (tmp_path / name).read_text() == "x"


def test_devices_stay_devices(tmp_path):
    with atomic_file("/dev/null") as file:
        file.write(b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_leftovers_are_known_by_the_names_that_are_chosen(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "epoch_3.pth"):
        (left,) = [p.name for p in tmp_path.iterdir()]
        _ = 1 / 0
    assert is_partial_file(left, r"epoch_\d+\.pth")
    assert not is_partial_file(left, r"best\.pth")
    for other in ("download.bin.part", ".epoch_3.pth.part", "epoch_3.pth.00000000.part", ".x.00000000.part"):
        assert not is_partial_file(other, r"epoch_\d+\.pth")


def test_a_lock_is_free_when_it_is_released_as_often_as_it_was_taken(tmp_path):
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert one.acquire()
    assert one.acquire()
    one.release()
    assert not other.acquire(patience=0.1)
    one.release()
    one.release()
    with other:
        assert not one.acquire()
    assert one.acquire()


def test_a_forked_process_keeps_no_lock_of_its_parents(tmp_path):
    """The workers of a run that is killed live on for some seconds."""
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.close(theirs)
        os.read(ours, 1)  # until the parent closes it
        os._exit(0)
    os.close(lock._descriptor)  # as a kill does, which unlocks nothing by itself
    lock._descriptor = None
    try:
        assert FileLock(tmp_path / "lock").acquire(patience=5)
    finally:
        os.close(theirs)
        os.close(ours)
        os.waitpid(child, 0)


def test_a_lock_follows_no_link(old):
    (old.parent / "lock").symlink_to(old)
    with pytest.raises(ValueError, match="lock is a link, expected a lock file: remove it"):
        FileLock(old.parent / "lock").acquire()
    assert old.read_text() == "old"

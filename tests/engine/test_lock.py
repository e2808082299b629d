"""What a refused run leaves in its work directory: nothing new, and nothing of others is lost."""

import threading
import time

import pytest

from crate_mm.engine import Runner, load_config
from crate_mm.engine.safety.lock import LOCK, locked_work_dir
from crate_mm.io.files import FileLock


def refused(work_dir):
    cfg = load_config("debug", {"model.head.num_classes": 7})
    cfg.work_dir = str(work_dir)
    with pytest.raises(ValueError, match="the data has 10 classes"):
        Runner.for_training(cfg)


def test_a_refused_run_leaves_nothing(tmp_path):
    refused(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    (tmp_path / "run" / "20260101_000000").mkdir(parents=True)
    (tmp_path / "run" / LOCK).touch()
    refused(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK, "20260101_000000"]
    assert FileLock(tmp_path / "run" / LOCK).acquire()


def test_a_checkpoint_that_got_another_name_stays(tmp_path):
    (tmp_path / "epoch_1.pth").touch()
    with pytest.raises(ValueError, match="refused"), locked_work_dir(tmp_path):
        (tmp_path / "epoch_1.pth").rename(tmp_path / "epoch_1.pth.damaged")
        (tmp_path / "20260101_000000").mkdir()
        raise ValueError("refused")
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_1.pth.damaged"]


def test_who_waits_for_a_deleted_lock_locks_a_new_file(tmp_path):
    """Otherwise a third process would lock the new file at the same time."""
    first, second = FileLock(tmp_path / LOCK), FileLock(tmp_path / LOCK)
    assert first.acquire()
    assert not second.acquire()
    acquired = []
    thread = threading.Thread(target=lambda: acquired.append(second.acquire(10.0)))
    thread.start()
    time.sleep(0.1)
    first.delete()
    thread.join()
    assert acquired == [True]
    assert not FileLock(tmp_path / LOCK).acquire()
    second.release()

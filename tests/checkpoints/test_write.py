"""Checkpoints on their way to a file."""

import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch

from crate_mm.checkpoints import read_checkpoint, verify_checkpoint, write_checkpoint


def contents(tensors: int = 40) -> dict:
    weights = {f"w{i}": torch.full((1000,), float(i)) for i in range(tensors)}
    return {"meta": {"epoch": 3}, "state_dict": {**weights, "tied": weights["w0"]}}


def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "new" / "epoch_1.pth"
    write_checkpoint(contents(), path)
    assert verify_checkpoint(path) is None
    state = read_checkpoint(path)["state_dict"]
    assert torch.equal(state["w7"], torch.full((1000,), 7.0))
    assert state["tied"].data_ptr() == state["w0"].data_ptr()
    assert os.listdir(path.parent) == ["epoch_1.pth"]


@contextmanager
def size_limit(size: int):
    """Let no file grow beyond so many bytes: writes that do fail with an OSError, wherever PyTorch is in its format.

    pytest's own output may be a file, so the limit ends before anything else is written.
    """
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.97, 0.99, 0.9999])
def test_a_disk_that_is_full_at_any_point_leaves_the_old_file(tmp_path, share):
    path = tmp_path / "epoch_1.pth"
    write_checkpoint(contents(), path)
    whole = path.stat().st_size
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="File too large"), size_limit(int(share * whole)):
        write_checkpoint(contents(), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["epoch_1.pth"]


def test_a_write_that_the_system_takes_in_parts_is_whole(tmp_path, monkeypatch):
    """As Linux does with more than 2 GB."""
    path = tmp_path / "epoch_1.pth"
    from crate_mm.checkpoints import write

    class Little:
        def __init__(self, file):
            self.raw = self
            self.write = lambda data: file.raw.write(data[:1000])

    direct = write._Direct
    monkeypatch.setattr(write, "_Direct", lambda file: direct(Little(file)))
    write_checkpoint(contents(), path)
    assert verify_checkpoint(path) is None
    assert torch.equal(read_checkpoint(path)["state_dict"]["w39"], torch.full((1000,), 39.0))

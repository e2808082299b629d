"""Runs, packings and processes that meet: none deletes what it did not write, none goes on with another's."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from crate_mm.checkpoints.files import training_checkpoints
from crate_mm.cli.options import IN_USE
from crate_mm.datasets import PackedImages
from crate_mm.engine import load_config, read_checkpoint
from crate_mm.engine.safety.lock import LOCK
from crate_mm.io.files import FileLock
from crate_mm.registry import MODELS, RUNNERS
from tests.conftest import ROOT, make_image_tree
from tests.faults.test_interruptions import build

HOLDS = """
import sys, time
from crate_mm.io.files import FileLock
lock = FileLock(sys.argv[1])
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def another_process():
    """A process that holds a lock until the test ends."""
    started = []

    def hold(lock: Path) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", HOLDS, lock], stdout=subprocess.PIPE, text=True))
        assert started[0].stdout.readline() == "held\n"
        return started[0]

    yield hold
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory):
    """A function that copies the work directory of one epoch."""
    source = tmp_path_factory.mktemp("source")
    build(source, train_cfg__max_epochs=1, default_hooks__checkpoint__max_keep_ckpts=1).train()
    return partial(shutil.copytree, source)


@pytest.mark.slow
def test_a_second_run_in_a_work_folder_is_refused_and_changes_nothing(
    tmp_path, first_epoch, another_process, run_tool, monkeypatch
):
    work_dir = first_epoch(tmp_path / "run")

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in work_dir.rglob("*") if path.is_file() and path.name != LOCK}

    before = contents()
    other = another_process(work_dir / LOCK)
    monkeypatch.setattr("crate_mm.engine.safety.lock.PATIENCE", 0.2)  # the tools are forked off
    for more in ([], ["--resume"]):
        done = run_tool("train", "debug", "--work-dir", work_dir, *more)
        assert done.code == 2, done.output
        assert f"error: the work directory {work_dir} is in use by another run" in done.last_line
    # The launcher is told by a code of its own, so that it may try again.
    assert run_tool("train", "debug", "--work-dir", work_dir, TORCHELASTIC_RUN_ID="x").code == IN_USE
    assert contents() == before
    other.send_signal(signal.SIGKILL)  # which leaves no lock behind
    other.wait()
    options = ("--cfg-options", "train_cfg.max_epochs=1")
    assert run_tool("train", "debug", "--work-dir", work_dir, *options).code == 0


def test_a_run_holds_its_folder_while_it_trains(tmp_path):
    runner = build(tmp_path, train_cfg__max_epochs=1)
    held = []
    runner.build_for_training()
    probe = "import sys; from crate_mm.io.files import FileLock; print(FileLock(sys.argv[1]).acquire())"
    runner.hooks[0].after_train_iter = lambda *args, **kwargs: (
        held
        or held.append(
            subprocess.run([sys.executable, "-c", probe, tmp_path / LOCK], capture_output=True, text=True).stdout
        )
    )
    runner.train()
    assert held[0] == "False\n"
    assert FileLock(tmp_path / LOCK).acquire()  # it is free again


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def no_locks(request, monkeypatch) -> str:
    """A file system that has no locks; the sentence of its error."""

    def refuse(*args):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return os.strerror(request.param)


@pytest.mark.parametrize("no_locks", [errno.ENOLCK], indirect=True)  # all three below
@pytest.mark.slow
def test_a_file_system_without_locks_is_told_and_used(tmp_path, no_locks, run_tool):
    (tmp_path / LOCK).write_text("4711\nanother-node\n")  # of a run that was killed
    done = run_tool("train", "debug", "--work-dir", tmp_path, "--cfg-options", "train_cfg.max_epochs=1")
    assert done.code == 0, done.output
    assert (
        f"could not lock {tmp_path} ({no_locks}): make sure that no other process writes to it"
        in done.output.replace("\n", "")
    )


def test_packing_goes_on_without_locks(tmp_path, no_locks, run_tool):
    source = make_image_tree(tmp_path / "data")
    done = run_tool("pack_dataset", source, tmp_path / "target", "--workers", 1, "--part", "1/2")
    assert done.code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == ["train", "val"]


@pytest.mark.slow
def test_a_run_deletes_the_checkpoints_that_it_wrote_alone(tmp_path):
    runner = build(tmp_path, train_cfg__max_epochs=3, default_hooks__checkpoint__max_keep_ckpts=1)
    runner.build_for_training()
    runner.hooks[0].before_train_epoch = lambda runner: (tmp_path / "epoch_0.pth").write_text("of somebody else")
    runner.train()
    assert (tmp_path / "epoch_0.pth").read_text() == "of somebody else"
    assert [p.name for p in training_checkpoints(tmp_path)] == ["epoch_0.pth", "epoch_2.pth", "epoch_3.pth"]


@pytest.mark.slow
def test_a_resumed_run_deletes_those_of_its_first_part_too(tmp_path, first_epoch):
    folder = first_epoch(tmp_path / "run")
    build(folder, train_cfg__max_epochs=3, default_hooks__checkpoint__max_keep_ckpts=1).train()
    assert [p.name for p in training_checkpoints(folder)] == ["epoch_2.pth", "epoch_3.pth"]


@pytest.mark.parametrize("name", ["epoch_1.pth", "../thesis.txt", "best_of_luck.txt"])
@pytest.mark.slow
def test_a_checkpoint_names_no_file_to_be_deleted(tmp_path, first_epoch, name):
    """The best one so far is deleted when there is a better one, by a name that the checkpoint has."""
    folder = first_epoch(tmp_path / "run")
    checkpoint = read_checkpoint(folder / "epoch_1.pth")
    info = checkpoint["message_hub"]["runtime_info"]
    info.update(best_ckpt=name, best_score=0.0, checkpoints=[name, "epoch_0.pth/../thesis.txt"])
    torch.save(checkpoint, folder / "epoch_1.pth")
    (folder / "thesis.txt").write_text("mine")
    (tmp_path / "thesis.txt").write_text("mine")
    (folder / "best_of_luck.txt").write_text("mine")
    build(folder, train_cfg__max_epochs=2, default_hooks__checkpoint__max_keep_ckpts=2).train()
    for kept in (folder / "thesis.txt", tmp_path / "thesis.txt", folder / "best_of_luck.txt"):
        assert kept.read_text() == "mine"
    assert (folder / "epoch_1.pth").exists()
    assert (folder / "epoch_2.pth").exists()


CONFIG = """
_base_ = "{root}/configs/debug.py"
import os
rank = os.environ.get("RANK", "0")
load_from = "{folder}/init_" + rank + ".pth" if "{what}" == "weights" else None
{change}
"""
CHANGES = {
    "weights": ("", "is a different file for process 1"),
    "wish": ("load_from = None if rank == '1' else FOLDER + '/init_0.pth'", "load-checkpoint flag is False for"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_processes_that_differ_stop_before_the_first_step(tmp_path, what, run_processes):
    change, message = CHANGES[what]
    change = change.replace("FOLDER", repr(str(tmp_path)))
    text = CONFIG.format(root=ROOT, folder=tmp_path, what=what, change=change)
    (tmp_path / "config.py").write_text(text)
    for rank in range(2):
        torch.manual_seed(rank)
        model = MODELS.build(load_config("debug").model)
        torch.save({"state_dict": model.state_dict()}, tmp_path / f"init_{rank}.pth")
    done = run_processes("train", tmp_path / "config.py", "--work-dir", tmp_path / "run")
    assert done.code != 0
    assert message in done.output
    assert "Traceback" not in done.output
    assert not training_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("key", ["number of training images", "config's optim_wrapper", "seed"])
def test_processes_with_other_data_or_another_seed_stop(tmp_path, monkeypatch, key):
    monkeypatch.setattr(RUNNERS.get("Runner"), "world_size", 2)
    gather = "crate_mm.engine.safety.consistency.all_gather_object"
    monkeypatch.setattr(gather, lambda mine: [mine, {**mine, key: "another"}])
    with pytest.raises(ValueError, match=f"the {key} is another for process 1 and .* here"):
        build(tmp_path).build_for_training()


@pytest.mark.slow
def test_a_hook_of_a_config_is_switched_off_by_none(tmp_path, run_tool):
    options = ["default_hooks.white_box=None", "default_hooks.logger=None", "train_cfg.max_epochs=1"]
    small = "model.backbone.arch=dict(embed_dim=16, depth=1, num_heads=2)"
    done = run_tool("train", "crate_tiny_digits", "--work-dir", tmp_path, "--cfg-options", *options, small)
    assert done.code == 0, done.output
    assert "WhiteBoxHook" not in done.output


@pytest.mark.slow
def test_two_packings_into_one_folder(tmp_path, another_process, run_tool):
    source = make_image_tree(tmp_path / "data")
    unfinished = tmp_path / "target.part"
    unfinished.mkdir()
    (unfinished / "holiday.txt").write_text("mine")
    args = ("pack_dataset", source, tmp_path / "target", "--workers", 1)
    done = run_tool(*args)
    assert "target.part exists but was not created by an earlier packing" in done.last_line
    assert (unfinished / "holiday.txt").read_text() == "mine"
    other = another_process(unfinished / ".packing")
    done = run_tool(*args)
    assert f"error: another process is packing into {unfinished}" in done.last_line
    assert (unfinished / "holiday.txt").exists()
    other.kill()
    other.wait()
    done = run_tool(*args)  # what the other has left behind is removed
    assert done.code == 0, done.output
    assert not unfinished.exists()
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == ["train", "val"]
    assert len(PackedImages(tmp_path / "target")) == 12

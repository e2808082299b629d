"""Where a run begins: the same run however often it is resumed, and what is no resume."""

import shutil
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

from crate_mm.checkpoints.readers.safetensors import digest
from crate_mm.engine import CheckpointError, Runner, load_config, open_checkpoint, read_checkpoint
from crate_mm.engine.checkpointing.start import find_start_point
from crate_mm.engine.safety.consistency import open_on_all
from tests.training import assert_same_states, debug_config, debug_runner, log_of, on_processes, result_of, train


# Optimizer, schedule, EMA, shuffling and augmentation at once; and the workers, since PyTorch's own way of seeding them
# does not survive a restart.
@pytest.mark.parametrize(
    "options",
    [
        dict(ema_momentum=0.1, train_dataloader__num_workers=2, train_dataloader__persistent_workers=True),
        dict(optim_wrapper__optimizer__type="AdamW", max_batch_per_device=8, optim_wrapper__clip_grad__max_norm=1.0),
    ],
    ids=["ema-workers", "adamw-accumulate-clip"],
)
@pytest.mark.slow
def test_resuming_changes_nothing(tmp_path, options):
    whole = train(tmp_path / "whole", train_cfg__max_epochs=2, **options)
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_1.pth", tmp_path / "part")  # as a run that was killed in its second epoch
    resumed = train(tmp_path / "part", resume=True, train_cfg__max_epochs=2, **options)
    assert_same_states(whole, resumed)
    assert ("ema_state_dict" in whole) == ("ema_momentum" in options)
    assert resumed["meta"]["iter"] == 20
    best = {Path(c["message_hub"]["runtime_info"]["best_ckpt"]).name for c in (whole, resumed)}
    assert len(best) == 1


def open_the_file_of(path: Path, rank: int) -> tuple:
    """Which processes read a checkpoint's contents for its checksums, and what is made of it."""
    sums, testzip = [], zipfile.ZipFile.testzip
    zipfile.ZipFile.testzip = lambda archive: (sums.append(archive.filename), testzip(archive))[1]
    try:
        opened = open_on_all(str(path))
        again = open_on_all(str(path), opened)
        return len(sums), digest(opened.weights), again is opened
    except CheckpointError as error:
        return len(sums), type(error).__name__, str(error)


@pytest.mark.slow
def test_one_process_of_a_node_reads_the_checksums(debug_checkpoint):
    answers = on_processes(3, partial(open_the_file_of, debug_checkpoint))
    weights = digest(read_checkpoint(debug_checkpoint)["state_dict"])
    assert answers == {0: (1, weights, True), 1: (0, weights, True), 2: (0, weights, True)}


@pytest.mark.slow
def test_what_is_damaged_for_one_process_of_a_node_is_for_all(debug_checkpoint, in_copy):
    damaged = in_copy(debug_checkpoint)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 255
    damaged.write_bytes(data)
    answers = on_processes(2, partial(open_the_file_of, damaged))
    assert answers[0][:2] == (1, "DamagedError")
    assert answers[1][:2] == (0, "CheckpointError")
    assert answers[1][2].startswith(f"process 0 cannot open the checkpoint: {damaged} is damaged")


def test_a_pickle_that_runs_code_is_refused_without_checksums_too(tmp_path):
    torch.save({"state_dict": {}, "evil": Path("a")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="Path"):
        read_checkpoint(tmp_path / "evil.pth", verified=True)


@pytest.mark.parametrize("known", [True, False])
def test_a_checkpoint_that_is_open_already_is_not_opened_again(tmp_path, debug_checkpoint, monkeypatch, known):
    shutil.copy(debug_checkpoint, tmp_path / "epoch_1.pth")
    cfg = debug_config()
    cfg.resume = "newest"
    opened = open_checkpoint(tmp_path / "epoch_1.pth")
    read = []
    monkeypatch.setattr(
        "crate_mm.engine.checkpointing.start.open_checkpoint", lambda path: (read.append(path), opened)[1]
    )
    start = find_start_point(cfg, str(tmp_path), opened if known else None)
    assert start.checkpoint is opened
    assert len(read) == (not known)


def test_processes_that_resume_from_different_files_stop(tmp_path, debug_checkpoint, monkeypatch):
    shutil.copy(debug_checkpoint, tmp_path)
    monkeypatch.setattr(Runner, "world_size", 2)
    monkeypatch.setattr(
        "crate_mm.engine.safety.consistency.all_gather_object",
        lambda mine: [mine, (0, 0, "another") if isinstance(mine, tuple) else mine],
    )
    with pytest.raises(ValueError, match=r"is a different file for process 1 \(epoch 0, iteration 0\) than here"):
        train(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(global_batch_size=64), "took 10 steps an epoch, but this run takes 5: resume with the same global_batch"),
        (dict(randomness__seed=5), "is of a run with randomness.seed=0, but this run has 5"),
        (dict(ema_momentum=0.1), "is of a run without averaged weights .*, but this run is with"),
        (dict(optim_wrapper__optimizer__type="AdamW"), "is of a run with Lion, but this run has AdamW"),
    ],
)
def test_a_resume_that_would_mix_two_recipes_is_refused(tmp_path, debug_checkpoint, changed, message):
    shutil.copy(debug_checkpoint, tmp_path)
    with pytest.raises(ValueError, match=message):
        train(tmp_path, resume=True, **changed)


@pytest.mark.slow
def test_a_resumed_run_follows_its_config_and_stays_the_run_that_it_is(epoch, tmp_path):
    shutil.copytree(epoch, tmp_path, dirs_exist_ok=True)
    resumed = train(tmp_path, resume=True, optim_wrapper__optimizer__weight_decay=0.05)
    assert resumed["optimizer"]["param_groups"][0]["weight_decay"] == 0.05
    assert "the length of the schedule has changed from 10 to 20 iterations" in log_of(tmp_path)
    assert result_of(tmp_path)["run"] == result_of(epoch)["run"]
    assert not list(tmp_path.glob("before_*"))
    train(tmp_path / "other", train_cfg__max_epochs=1)
    assert result_of(tmp_path / "other")["run"] != result_of(epoch)["run"]


def test_nothing_left_to_train_is_said(tmp_path, debug_checkpoint):
    shutil.copy(debug_checkpoint, tmp_path)
    train(tmp_path, resume=True, train_cfg__max_epochs=1, param_scheduler__end=1)
    assert "nothing is left to train" in log_of(tmp_path)


@pytest.mark.slow
def test_resume_in_a_config_takes_the_newest_that_is_intact(epoch, tmp_path):
    """As --resume does: the way over the config leads past no guarantee."""
    shutil.copy(epoch / "epoch_1.pth", tmp_path)
    (tmp_path / "epoch_2.pth").write_bytes((epoch / "epoch_1.pth").read_bytes()[:-1000])
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    runner = debug_runner(tmp_path, train_cfg__max_epochs=2, resume=True)
    runner.train()
    assert "epoch_2.pth is damaged" in log_of(tmp_path)
    assert "resumed epoch: 1, iter: 10" in log_of(tmp_path)
    assert runner.epoch == 2
    assert (tmp_path / "epoch_2.pth.damaged").exists()


def test_validation_in_a_folder_that_is_to_be_resumed(tmp_path, debug_checkpoint):
    cfg = load_config("debug")
    cfg.work_dir, cfg.resume = str(tmp_path), True
    assert torch.isfinite(torch.tensor(Runner.from_cfg(cfg).val()["eval/loss"]))


@pytest.mark.parametrize(("resume", "found"), [(True, True), ("newest", False), (False, False)])
def test_a_restart_before_the_first_checkpoint_begins_as_it_was_asked_to(tmp_path, monkeypatch, resume, found):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    cfg = load_config("debug")
    cfg.resume, cfg.load_from = resume, "old/epoch_3.pth"
    assert find_start_point(cfg, str(tmp_path))[:2] == ("old/epoch_3.pth", found)

"""Checkpoints as the Runner writes them, while training goes on, and reads them back."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from crate_mm.checkpoints import write_checkpoint
from crate_mm.engine import read_checkpoint
from crate_mm.engine.checkpointing.write import to_cpu
from tests.faults.test_interruptions import at_step, names
from tests.training import assert_same_states, debug_runner, log_of, train

AT_THE_SIXTH = dict(default_hooks__checkpoint__every_iters=6, train_cfg__max_epochs=1, ema_momentum=0.1)


class Held:
    """Writes checkpoints as ``write_checkpoint`` does, once they are let go."""

    def __init__(self, monkeypatch) -> None:
        self.let_go, self.begun, self.threads = threading.Event(), threading.Event(), []
        monkeypatch.setattr("crate_mm.engine.checkpointing.write.write_checkpoint", self)

    def __call__(self, contents, path) -> None:
        self.threads.append(threading.current_thread())
        self.begun.set()
        assert self.let_go.wait(60)
        write_checkpoint(contents, path)


@pytest.mark.slow
def test_training_goes_on_and_what_is_written_is_of_the_step_that_it_names(tmp_path, monkeypatch):
    debug_runner(tmp_path / "waits", **AT_THE_SIXTH, default_hooks__checkpoint__background=False).train()
    held, seen = Held(monkeypatch), []
    runner = debug_runner(tmp_path / "beside", **AT_THE_SIXTH)

    def look() -> None:  # three steps later
        seen.append(names(tmp_path / "beside"))
        held.let_go.set()

    at_step(runner, 9, look)
    runner.train()
    assert seen == [[]]
    for name in ("epoch_0_iter_6.pth", "epoch_1.pth"):
        one, other = (read_checkpoint(tmp_path / folder / name) for folder in ("waits", "beside"))
        assert one["meta"]["iter"] == other["meta"]["iter"]
        assert_same_states(one, other)
    assert not any(thread is threading.main_thread() for thread in held.threads[:1])


@pytest.mark.slow
def test_older_ones_stay_until_the_new_one_is_read_back(tmp_path, monkeypatch):
    runner = debug_runner(tmp_path, **{**AT_THE_SIXTH, "default_hooks__checkpoint__every_iters": 2})
    held, seen = Held(monkeypatch), []
    held.let_go.set()

    def hold() -> None:
        runner.finish_checkpoint()
        seen.append(names(tmp_path))
        held.let_go.clear()

    def look() -> None:
        seen.append(names(tmp_path))
        held.let_go.set()
        runner.finish_checkpoint()
        seen.append(names(tmp_path))

    at_step(runner, 6, hold)  # which is saved after it
    at_step(runner, 8, look)
    runner.train()
    assert seen[0] == seen[1] == ["epoch_0_iter_2.pth", "epoch_0_iter_4.pth"]
    assert seen[2] == ["epoch_0_iter_4.pth", "epoch_0_iter_6.pth"]


def test_what_is_damaged_on_the_disk_is_no_reason_to_delete_another(tmp_path, monkeypatch):
    runner = debug_runner(tmp_path, **{**AT_THE_SIXTH, "default_hooks__checkpoint__every_iters": 2})

    def damage_the_third(contents, path) -> None:
        write_checkpoint(contents, path)
        if path.name == "epoch_0_iter_6.pth":
            path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr("crate_mm.engine.checkpointing.write.write_checkpoint", damage_the_third)
    seen = []
    at_step(runner, 8, lambda: (runner.finish_checkpoint(), seen.append(names(tmp_path))))
    runner.train()
    assert seen[-1] == ["epoch_0_iter_2.pth", "epoch_0_iter_4.pth"]
    assert log_of(tmp_path).count("could not write the checkpoint") == 1


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["at its end", "by an error"])
def test_a_run_waits_for_its_last_checkpoint(tmp_path, monkeypatch, ends):
    runner = debug_runner(tmp_path, **{**AT_THE_SIXTH, "default_hooks__checkpoint__save_best": None})

    def write_slowly(contents, path) -> None:
        time.sleep(0.4)
        write_checkpoint(contents, path)

    monkeypatch.setattr("crate_mm.engine.checkpointing.write.write_checkpoint", write_slowly)
    if ends == "at its end":
        runner.train()
        assert names(tmp_path) == ["epoch_0_iter_6.pth", "epoch_1.pth"]
    else:

        def fail() -> None:
            raise ZeroDivisionError

        at_step(runner, 8, fail)
        with pytest.raises(ZeroDivisionError):
            runner.train()
        assert names(tmp_path) == ["epoch_0_iter_6.pth"]
    assert runner.pending_write is None
    assert not list(tmp_path.glob(".*.part"))


def test_the_second_ctrl_c_waits_for_no_checkpoint(tmp_path, monkeypatch):
    held, runner = Held(monkeypatch), debug_runner(tmp_path, **AT_THE_SIXTH)

    def interrupt() -> None:
        assert held.begun.wait(30)
        raise KeyboardInterrupt

    at_step(runner, 8, interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert runner.pending_write.is_running
    held.let_go.set()
    runner.finish_checkpoint()


def test_an_error_that_is_not_the_disks_ends_the_run(tmp_path, monkeypatch):
    runner = debug_runner(tmp_path, **AT_THE_SIXTH)

    def fail(contents, path) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("crate_mm.engine.checkpointing.write.write_checkpoint", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        runner.train()


def test_a_snapshot_is_of_its_own_memory_and_keeps_what_is_shared():
    weight = torch.arange(6.0)
    contents = {"a": weight, "tied": weight, "view": weight[2:], "list": [1, {"step": torch.tensor(3.0)}]}
    copied, moved = to_cpu(contents, copy=True), to_cpu(contents, copy=False)
    weight.zero_()
    contents["list"][1]["step"].add_(1)
    contents["list"][0] = 2
    assert copied["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert copied["list"] == [1, {"step": torch.tensor(3.0)}]
    assert copied["tied"].data_ptr() == copied["a"].data_ptr() == copied["view"].data_ptr() - 8
    assert moved["a"].data_ptr() == weight.data_ptr()


def test_checkpoints_are_written_in_one_piece(tmp_path, monkeypatch):
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda part, path: (written.append(path), replace(part, path)))
    train(tmp_path, train_cfg__max_epochs=1)
    files = {p for p in tmp_path.iterdir() if p.is_file() and p.suffix != ".py" and p.name != ".lock"}
    assert {Path(path) for path in written if Path(path).suffix != ".py"} == files


@pytest.mark.slow
def test_a_different_model_of_the_same_shapes_is_warned_of(tmp_path, debug_checkpoint):
    options = dict(model__backbone__ista_lambda=0.3, model__head__pool="mean", load_from=str(debug_checkpoint))
    debug_runner(tmp_path, **options).test()
    assert "was trained with backbone.ista_lambda=0.1, but the config has 0.3" in log_of(tmp_path)
    assert "was trained with head.pool='cls', but the config has 'mean'" in log_of(tmp_path)

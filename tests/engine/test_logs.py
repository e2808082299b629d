"""What the log says: the loss of all processes, tags that do not mix, and nothing that helps nobody."""

import time

import pytest
from mmengine.dist import get_rank

from tests.training import FewDigits, debug_runner, log_of, scalars_of, train_on_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of two epochs in micro-batches; the computer's clock goes back by an hour in the second."""
    folder, now = tmp_path_factory.mktemp("run"), time.time
    options = dict(default_hooks__logger__interval=1, default_hooks__progress__seconds=1000, max_batch_per_device=8)
    options["visualizer__vis_backends"] = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    runner = debug_runner(folder, train_cfg__max_epochs=2, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - 3600 * (runner.is_training and runner.iter > 14))
        runner.train()
    assert 0 <= runner.message_hub.get_info("eta") < 60
    return folder


def test_the_logged_loss_is_the_mean_over_the_processes(one_process, two_processes):
    one, two = ([row for row in scalars_of(folder) if "lr" in row] for folder in (one_process, two_processes))
    assert len(one) == len(two) == 10
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-4)
    assert not [row for row in one if "largest_data_time" in row], "a process alone waits for no other"


def test_the_process_that_waits_longest_for_its_data_is_logged(tmp_path, monkeypatch):
    load = FewDigits.__getitem__

    def load_slowly(self, index):  # 16 images of 5 ms a step, on one process
        time.sleep(0.005 * (get_rank() == 1))
        return load(self, index)

    monkeypatch.setattr(FewDigits, "__getitem__", load_slowly)
    train_on_processes(2, tmp_path / "two", default_hooks__logger__interval=2, train_dataloader__num_workers=0)
    rows = [row for row in scalars_of(tmp_path / "two") if "lr" in row]
    assert len(rows) == 5
    for row in rows:
        assert row["largest_data_time_rank"] == 1
        assert 0.08 <= row["largest_data_time"]
        assert row["data_time"] < row["largest_data_time"]  # that is the first process's
    assert log_of(tmp_path / "two").count("largest_data_time_rank: 1  ") == 5


def test_times_have_tags_of_their_own_and_are_of_a_clock_that_nobody_sets(run):
    training, validation = ([row for row in scalars_of(run) if key in row] for key in ("lr", "eval/top1"))
    assert [row["iter"] for row in training] == list(range(1, 21))
    assert len(validation) == 2
    for rows, keys in ((training, {"time", "data_time"}), (validation, {"val/time", "val/data_time"})):
        assert all(0 <= row[key] < 60 for row in rows for key in keys)
    assert not any({"time", "data_time"} & row.keys() for row in validation)
    assert "day" not in log_of(run)


def test_the_log_is_of_the_run(run):
    text = log_of(run)
    assert "effective batch 32 = 1 process x 32 in 4 micro-batches of 8 images of 320; 10 steps an epoch" in text
    assert "Lion, learning rate 0.001 after 4 steps of warm-up" in text
    assert "eta: " in text
    assert list(run.glob("*/vis_data/events.out.tfevents*"))
    assert "steps, " not in text.replace("steps an epoch", ""), "no progress, as others speak"
    lines = text.splitlines()
    assert "Exp name" not in text
    (folder,) = run.glob("20*")
    assert len([line for line in lines if f"_{folder.name}" in line]) == 1, "the experiment's name"
    validation = [line for line in lines if "eval/top1: " in line]
    assert [("Epoch(val)" in line, "time" in line) for line in validation] == [(True, False)] * 2
    assert not [line for line in lines if "deprecated" in line or "SyncBatchNorm" in line]
    assert not [line for line in lines if "embedding.proj" in line], "no parameter's initialisation"
    assert len([line for line in lines if "Epoch(train)" not in line]) < 23, "and no more"


def test_validation_loss_is_not_averaged_over_epochs(run, tmp_path):
    logged = [row["eval/loss"] for row in scalars_of(run) if "eval/loss" in row]
    tested = debug_runner(tmp_path, load_from=str(run / "epoch_2.pth")).test()
    assert logged[1] == pytest.approx(tested["eval/loss"], rel=1e-6)

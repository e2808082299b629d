"""What the log says: the loss of all processes, tags that do not mix, and nothing that helps nobody."""

import json
import time

import pytest
from mmengine.dist import get_rank

from tests.training import SGD, FewDigits, debug_runner, train, train_on_processes


def scalars(folder):
    (file,) = folder.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_the_logged_loss_is_the_mean_over_the_processes(tmp_path):
    options = dict(default_hooks__logger__interval=1, log_processor__window_size=1)
    train(tmp_path / "one", **SGD, **options)
    train_on_processes(2, tmp_path / "two", **options)
    one, two = ([row for row in scalars(tmp_path / name) if "lr" in row] for name in ("one", "two"))
    assert len(one) == len(two) == 10
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-4)


@pytest.mark.slow
def test_the_process_that_waits_longest_for_its_data_is_logged(tmp_path, monkeypatch):
    load = FewDigits.__getitem__

    def load_slowly(self, index):  # 16 images of 5 ms a step, on one process
        time.sleep(0.005 * (get_rank() == 1))
        return load(self, index)

    monkeypatch.setattr(FewDigits, "__getitem__", load_slowly)
    train_on_processes(2, tmp_path / "two", default_hooks__logger__interval=2, train_dataloader__num_workers=0)
    rows = [row for row in scalars(tmp_path / "two") if "lr" in row]
    assert len(rows) == 5
    for row in rows:
        assert row["largest_data_time_rank"] == 1
        assert 0.08 <= row["largest_data_time"]
        assert row["data_time"] < row["largest_data_time"]  # that is the first process's
    (log,) = (tmp_path / "two").glob("*/*.log")
    assert log.read_text().count("largest_data_time_rank: 1  ") == 5


def test_a_process_alone_waits_for_no_other(tmp_path):
    train(tmp_path, train_cfg__max_epochs=1)
    assert not [row for row in scalars(tmp_path) if "largest_data_time" in row]


@pytest.mark.slow
def test_times_of_validation_have_tags_of_their_own(tmp_path):
    train(tmp_path, train_cfg__max_epochs=1)
    training = [row for row in scalars(tmp_path) if "lr" in row]
    validation = [row for row in scalars(tmp_path) if "eval/top1" in row]
    assert all({"time", "data_time"} <= row.keys() for row in training)
    assert all({"val/time", "val/data_time"} <= row.keys() for row in validation)
    assert not any({"time", "data_time"} & row.keys() for row in validation)


@pytest.mark.slow
def test_times_are_of_a_clock_that_nobody_sets(tmp_path, monkeypatch):
    """The computer's clock goes back by an hour in the second epoch."""
    now, runner = time.time, debug_runner(tmp_path, train_cfg__max_epochs=2, default_hooks__logger__interval=2)
    monkeypatch.setattr(time, "time", lambda: now() - 3600 * (runner.is_training and runner.iter > 14))
    runner.train()
    rows = scalars(tmp_path)
    assert len([row for row in rows if row.get("epoch") == 2]) == 5
    times = [row[key] for row in rows for key in ("time", "data_time", "val/time", "val/data_time") if key in row]
    assert all(0 <= seconds < 60 for seconds in times)
    assert 0 <= runner.message_hub.get_info("eta") < 60
    (log,) = tmp_path.glob("*/*.log")
    assert "day" not in log.read_text()


@pytest.mark.slow
def test_the_log_is_of_the_run(tmp_path):
    runner = debug_runner(tmp_path, train_cfg__max_epochs=2)
    runner.train()
    (log,) = tmp_path.glob("*/*.log")
    lines = log.read_text().splitlines()
    assert "Exp name" not in log.read_text()
    assert len([line for line in lines if runner.experiment_name in line]) == 1
    validation = [line for line in lines if "Epoch(val)" in line]
    assert [("eval/top1" in line, "time" in line) for line in validation] == [(True, False)] * 2
    assert not [line for line in lines if "deprecated" in line or "SyncBatchNorm" in line]
    assert not [line for line in lines if "embedding.proj" in line], "no parameter's initialisation"
    assert len(lines) < 25

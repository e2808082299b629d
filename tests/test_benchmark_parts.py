"""Shared parts of the benchmarks count correctly, keep finished rows, and compute in the named precision."""

import argparse
import importlib
import json
import time

import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture
def part(monkeypatch):
    """A file of tools/benchmarks as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "benchmarks"))
    return importlib.import_module


def test_the_json_is_whole_after_each_row_and_stays_when_the_next_one_fails(part, tmp_path, capsys):
    written = tmp_path / "figures.json"
    counts = []

    def rows():
        for number in range(3):
            yield {"form": f"form {number}", "ms": 1.5}
            counts.append(len(json.loads(written.read_text())["rows"]))
        raise MemoryError

    with pytest.raises(MemoryError):
        part("machine").report("title", rows(), {"batch": 2}, str(written))
    assert counts == [1, 2, 3]
    figures = json.loads(written.read_text())
    assert [row["form"] for row in figures["rows"]] == ["form 0", "form 1", "form 2"]
    assert figures["arguments"] == {"batch": 2}
    assert "form 2" in capsys.readouterr().out


def test_steps_in_a_row_are_waited_for_once(part, monkeypatch):
    machine = part("machine")
    calls, waits = [], []
    monkeypatch.setattr("crate_mm.extras.bench.synchronize", lambda: waits.append(len(calls)))

    def form():
        calls.append(time.sleep(0.01))

    seconds = machine.time_in_turns({"form": form}, rounds=2, steps=5)["form"]
    assert len(calls) == 1 + 2 * 5
    assert waits == [1, 6, 6, 11]  # before and after each round
    assert all(0.01 <= time < 0.05 for time in seconds)  # per step


@pytest.mark.parametrize(
    ("precision", "products", "autocast"), [("float32", "highest", 0), ("tf32", "high", 0), ("bf16", "highest", 1)]
)
def test_a_form_runs_in_the_precision_that_is_named_whatever_is_set(part, precision, products, autocast, monkeypatch):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        run = part("machine").in_precision(
            lambda: (torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")), precision, "cpu"
        )
        assert run() == (products, bool(autocast))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_form_that_the_gpu_has_no_memory_for_is_left_out(part, capsys):
    def too_large():
        raise torch.OutOfMemoryError

    seconds = part("train_step").first_seconds({("textbook", "bf16"): too_large, ("plain", "bf16"): lambda: None})
    assert list(seconds) == [("plain", "bf16")]
    assert "textbook in bf16" in capsys.readouterr().out


@pytest.mark.slow
def test_photographs_beyond_the_distinct_ones_are_links(part, tmp_path):
    photographs = part("photographs")
    root = photographs.write_tree(tmp_path / "data", 7, classes=3, size=(40, 30), distinct=4)
    files = sorted((root / "train").rglob("*.JPEG"), key=lambda path: path.name)
    assert [path.parent.name[-1] for path in files] == list("0120120")
    contents = [path.read_bytes() for path in files]
    assert contents[4:] == contents[:3]
    assert len(set(contents)) == 4
    assert files[4].stat().st_ino == files[0].stat().st_ino
    again = photographs.write_tree(tmp_path / "again", 2, classes=3, size=(40, 30))
    assert [path.read_bytes() for path in sorted(again.rglob("*.JPEG"))] == contents[:2]


def test_an_epoch_is_counted_while_the_loader_loads(part, monkeypatch):
    """Three batches are ready at the start, and the last three steps load nothing: both are faster than the rest."""
    end_to_end = part("end_to_end")
    clock = [0.0]
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: clock[0])
    loader = argparse.Namespace(num_workers=1, get=lambda name, default: default)
    runner = argparse.Namespace(cfg=argparse.Namespace(train_dataloader=loader))
    args = argparse.Namespace(images=30, batch=3)
    hook = end_to_end.StepTimes(*end_to_end.counted_steps(args, runner))
    assert hook.steps == (3, 6)
    for step in range(10):
        clock[0] += 5.0 if 3 < step < 7 else 1.0
        hook.after_train_iter(None, step)
    assert hook.seconds_per_step == 5.0


def test_an_epoch_that_is_too_short_to_count_is_refused(part):
    loader = argparse.Namespace(num_workers=2, get=lambda name, default: 4)
    runner = argparse.Namespace(cfg=argparse.Namespace(train_dataloader=loader))
    with pytest.raises(ValueError, match="9 batches may be ready before the first step.* Give --images 56 or more"):
        part("end_to_end").counted_steps(argparse.Namespace(images=38, batch=2), runner)


def test_a_round_in_which_others_had_the_core_does_not_count(part, monkeypatch):
    """Of rounds of 1, 5 and 4 seconds, the first had the core for half of its time; 4 is the minimum of the others."""
    machine = part("machine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wall, used = iter([0, 1, 10, 15, 20, 24]), iter([0, 0.5, 10, 15, 20, 24])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(machine.time, "process_time", lambda: next(used))
    assert machine.least_seconds(lambda: None, rounds=2) == (4, 0.0)
    wall, used = iter([0, 1, 10, 15]), iter([0, 0.5, 10, 11])
    assert machine.least_seconds(lambda: None, rounds=1) == (1, 0.5)  # if there is no other

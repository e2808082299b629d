"""How far a run is: a line on a terminal, lines in a log elsewhere."""

import os
import pty
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, start
from tests.training import debug_runner, log_of


def test_a_log_is_not_silent_for_longer_than_asked_for(tmp_path):
    """No step is logged by LoggerHook here but the last of an epoch."""
    runner = debug_runner(tmp_path, train_cfg__max_epochs=1, default_hooks__progress__seconds=1e-6)
    runner.train()
    lines = [line.split(" - ")[-1] for line in log_of(tmp_path).splitlines()]
    steps = [re.fullmatch(r"epoch 1/1: (\d+) of 10 steps, [\d,]+ images/s", line) for line in lines]
    assert [int(match[1]) for match in steps if match] == list(range(1, 11))
    assert "validation: 1 of 1 steps" in lines


def test_nothing_moves_in_a_file_that_is_forced_to_have_colors(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    debug_runner(tmp_path, train_cfg__max_epochs=1).train()
    written = capsys.readouterr().out
    assert "Epoch(train)" in written
    assert not re.search(r"\r|\x1b\[[0-9?]*[A-Zl]", written)


def test_a_run_without_standard_streams_trains(tmp_path, monkeypatch):
    """As from a program that closes them first; Python's are then None."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    debug_runner(tmp_path, train_cfg__max_epochs=1).train()
    assert (tmp_path / "epoch_1.pth").exists()


def on_a_terminal(monkeypatch, *args) -> tuple[int, str]:
    """Train with a terminal for its output; return its exit code and what the terminal got."""
    monkeypatch.delenv("CI", raising=False)
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "40"}
    process = start(ROOT / "tools" / "train.py", args, Path(os.ttyname(theirs)), ROOT, environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        written += read
    os.close(ours)
    process.join(60)
    return process.exitcode, written.decode()


@pytest.mark.slow
def test_on_a_terminal_a_line_moves_and_is_gone_at_the_end(tmp_path, monkeypatch):
    args = ("debug", "--work-dir", tmp_path, "--cfg-options", "train_cfg.max_epochs=2")
    code, written = on_a_terminal(monkeypatch, *args)
    assert code == 0, written
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    for what in ("epoch 1/2", "epoch 2/2"):
        counts = [int(n) for n in re.findall(rf"{what} \S+ +(\d+)/\d+", plain)]
        assert len(set(counts)) > 1, what
        assert counts == sorted(counts), what
    assert re.search(r"validation \S+ +[1-9]", plain)
    assert "images/s" in plain
    # What is logged stands on lines of its own, and the cursor is there again.
    logged = [line for line in re.split(r"[\r\n]+", plain) if "Epoch(train)" in line]
    assert logged
    assert all(re.match(r"\d\d/\d\d \d\d:\d\d:\d\d - mmengine - INFO - Epoch", line) for line in logged)
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l") >= 0


@pytest.mark.slow
def test_an_error_takes_the_line_off_the_terminal(tmp_path, monkeypatch):
    wrong = ("--cfg-options", "optim_wrapper.optimizer.type=SGD", "optim_wrapper.optimizer.lr=1e30")
    code, written = on_a_terminal(monkeypatch, "debug", "--work-dir", tmp_path, *wrong)
    assert code != 0
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).strip().splitlines()[-1]
    assert last.startswith("error: "), last
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l") >= 0

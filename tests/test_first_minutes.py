"""The first minutes on a GPU: every stage's command is valid, stages are bounded, and their results stay."""

import importlib
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_readmes import assert_parsed


@pytest.fixture
def first_minutes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "benchmarks"))
    return importlib.import_module("first_minutes")


@pytest.mark.parametrize("toy", [False, True])
def test_every_stage_has_a_script_that_takes_its_arguments(first_minutes, toy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stages = first_minutes.stages(toy)
    assert len({stage.name for stage in stages}) == len(stages)
    assert stages[0].script == "-m"
    for stage in stages[1:]:
        assert_parsed(ROOT / "tools" / "benchmarks" / stage.script, [*stage.arguments, "--json", "figures.json"])


def test_the_files_with_tests_for_a_gpu_are_found(first_minutes):
    assert "tests/engine/test_fast_paths.py" in first_minutes.files_of_gpu_tests()


def test_the_sizes_are_for_a_gpu_and_the_limits_fit(first_minutes):
    """The most informative stages fit in the time even if each takes its whole limit."""
    limits = [stage.limit for stage in first_minutes.stages(toy=False)]
    assert sum(limits[:6]) < 9.5 * 60


@pytest.fixture
def started(first_minutes, tmp_path):
    """Run a stage of Python's own for a limit, and return the row and what it has written."""

    def run(code: str, limit: float, end: float = 60):
        (tmp_path / "stage_of_a_test.py").write_text(code)
        stage = first_minutes.Stage("stage", "-m", ["stage_of_a_test"], limit)
        environment = {"PYTHONPATH": str(tmp_path)}
        row = first_minutes.run(stage, tmp_path, environment, time.monotonic() + end)
        return row, (tmp_path / "stage.txt").read_text() if (tmp_path / "stage.txt").exists() else ""

    return run


def test_a_stage_that_ends_well_and_one_that_fails(started):
    row, output = started("print('figures')", 20)
    assert (row["ended"], output) == ("well", "figures\n")
    row, output = started("raise SystemExit('no GPU')", 20)
    assert row["ended"].startswith("with exit code 1, see ")
    assert output == "no GPU\n"


@pytest.mark.slow
def test_a_stage_is_ended_at_its_limit_with_all_that_it_has_started(started, tmp_path):
    child = tmp_path / "child"
    code = f"""
import subprocess, sys, time
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
open({str(child)!r}, "w").write(str(started.pid))
time.sleep(99)
"""
    start = time.monotonic()
    row, _ = started(code, 3)
    assert time.monotonic() - start < 15
    assert row["ended"].startswith("at its limit of 3 s")
    status = Path(f"/proc/{child.read_text()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()  # ended, if not yet collected by its new parent


def test_a_stage_does_not_begin_when_the_time_is_up(started):
    row, _ = started("print('never')", 20, end=3)
    assert row == {"stage": "stage", "ended": "not started, no time left", "seconds": 0.0, "command": ""}


def test_the_results_say_how_each_stage_has_ended(first_minutes, monkeypatch, tmp_path):
    """The stages' own scripts run in test_benchmark_tools.py."""
    script, out = tmp_path / "light.py", tmp_path / "out"
    script.write_text("import sys\nopen(sys.argv[sys.argv.index('--json') + 1], 'w').write(sys.argv[1])")
    light = [first_minutes.Stage(name, str(script), [name], 20) for name in ("first", "second")]
    monkeypatch.setattr(first_minutes, "stages", lambda toy: light)
    monkeypatch.setattr(sys, "argv", ["first_minutes.py", "--toy", "--out", str(out), "--stages", "second"])
    with pytest.raises(SystemExit) as ended:
        first_minutes.main()
    assert not ended.value.code, (out / "second.txt").read_text()
    figures = json.loads((out / "first_minutes.json").read_text())
    assert [(row["stage"], row["ended"]) for row in figures["rows"]] == [("second", "well")]
    assert figures["toy"] is True
    assert (out / "second.json").read_text() == "second"


def test_an_unknown_stage_is_refused(first_minutes, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["first_minutes.py", "--out", "out", "--stages", "stepp"])
    with pytest.raises(SystemExit, match="2"):
        first_minutes.main()
    assert "there is no stage 'stepp': choose gpu_tests, rates, step_base" in capsys.readouterr().err


@pytest.mark.slow
def test_wheels_are_found_beside_what_is_installed(first_minutes, tmp_path):
    wheels, info = tmp_path / "wheels", "only_here-1.0.dist-info"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "only_here-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("only_here.py", "found = 7\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: only-here\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    environment = first_minutes.environment_for(wheels, tmp_path / "scratch")
    command = [sys.executable, "-c", "import only_here, crate_mm; print(only_here.found)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "7\n", done.stderr

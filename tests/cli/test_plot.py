"""``plot``, by running it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from crate_mm.cli.plot import names_of
from crate_mm.extras.curves import read_run


@pytest.fixture
def run(debug_checkpoint):
    return debug_checkpoint.parent


def test_the_rows_are_what_was_logged(run_tool, run, tmp_path):
    out = tmp_path / "curves.csv"
    done = run_tool("plot", run, "--keys", "lr", "top1", "--out", out)
    assert (done.code, done.last_line) == (0, f"wrote {out}: lr, eval/top1 of 1 run")
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    logged = read_run(run)
    assert [(row["key"], int(row["iteration"]), float(row["epoch"]), float(row["value"])) for row in rows] == [
        (key, *point) for key in ("lr", "eval/top1") for point in logged[key]
    ]
    assert {row["run"] for row in rows} == {run.name}


@pytest.mark.slow
def test_pictures_of_runs_and_of_a_schedule(run_tool, run, tmp_path):
    for name, args in (("a.png", (run,)), ("b.png", ("--schedule", "debug")), ("c.pdf", (run, "--keys", "loss"))):
        done = run_tool("plot", *args, "--out", tmp_path / name)
        assert done.code == 0, done.output
        assert "Warning" not in done.output
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
    assert (pixels[:8] == 255).all()
    assert (pixels[:, -4:] == 255).all()
    assert ((pixels == (0x1F, 0x6F, 0xB4)).all(-1)).sum() > 500  # the line is there


def test_the_schedule_of_a_config_whose_model_is_a_checkpoints(run_tool, tmp_path):
    out = tmp_path / "schedule.csv"
    done = run_tool("plot", "--schedule", "transfer/pets", "--samples", 3680, "--out", out)
    assert (done.code, done.last_line) == (0, f"wrote {out}: 1400 iterations, 7 per epoch")
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["iteration"], float(rows[0]["lr"])) == ("1", 5e-5)
    assert float(rows[700]["lr"]) == pytest.approx(2.5e-5)
    assert (rows[-1]["iteration"], float(rows[-1]["epoch"])) == ("1400", 200)


def test_names_of_runs_differ():
    assert names_of(["/a/one", "/a/two"]) == ["one", "two"]
    assert names_of(["/a/one/run", "/a/two/run"]) == ["one/run", "two/run"]
    with pytest.raises(ValueError, match="a run is named twice"):
        names_of(["/a/one", "/a/one/"])


def leave_log(folder, *lines):
    (folder / "1/vis_data").mkdir(parents=True)
    (folder / "1/vis_data/scalars.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_picture_of_too_many_curves_is_refused(run_tool, tmp_path):
    leave_log(tmp_path / "run", {"iter": 1, **{f"k{number}": 1.0 for number in range(41)}})
    done = run_tool("plot", tmp_path / "run", "--out", tmp_path / "a.png")
    assert done.code == 2
    assert done.last_line.startswith("error: expected at most 40 panels and 500 curves, got 41 and 41: ")
    assert not (tmp_path / "a.png").exists()
    assert run_tool("plot", tmp_path / "run", "--out", tmp_path / "a.csv").code == 0
    assert run_tool("plot", tmp_path / "run", "--keys", "k0", "k40", "--out", tmp_path / "a.png").code == 0


def test_names_from_files_are_shown_as_names(run_tool, tmp_path):
    folder = tmp_path / "\x1b[31mred"
    leave_log(folder, {"iter": 1, "\x1b]0;owned\x07loss\nerror: forged": 1.0})
    done = run_tool("plot", folder, "--out", tmp_path / "a.csv")
    name = r"\x1b]0;owned\x07loss\nerror: forged"
    assert (done.code, done.last_line) == (0, f"wrote {tmp_path}/a.csv: {name} of 1 run")
    row = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))[1]
    assert row == [r"\x1b[31mred", name, "1", "", "1.0"]
    done = run_tool("plot", folder, "--keys", "\x1b[31m", "--out", tmp_path / "a.csv")
    assert (done.code, "\x1b" in done.output) == (2, False)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "error: give either the work directories of runs or --schedule CONFIG"),
        (("nowhere",), "error: nowhere has no log of a run"),
        (("nowhere", "--out", "a.gif"), "error: --out a.gif must end in .png, .pdf or .csv"),
        (("nowhere", "--samples", "3"), "error: --samples and --cfg-options need --schedule CONFIG"),
        (("--schedule", "debug", "--samples", "3"), "is more than the 3 training samples"),
    ],
)
def test_what_is_wrong_gets_a_sentence(run_tool, tmp_path, args, sentence):
    done = run_tool("plot", *args, cwd=tmp_path)
    assert (done.code, sentence in done.last_line) == (2, True), done.output
    assert "Traceback" not in done.output

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


def test_the_rows_are_what_was_logged(run_main, run, tmp_path):
    out = tmp_path / "curves.csv"
    done = run_main("plot", run, "--keys", "lr", "top1", "--out", out)
    assert done.last_line == f"wrote {out}: lr, eval/top1 of 1 run"
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    logged = read_run(run)
    assert [(row["key"], int(row["iteration"]), float(row["epoch"]), float(row["value"])) for row in rows] == [
        (key, *point) for key in ("lr", "eval/top1") for point in logged[key]
    ]
    assert {row["run"] for row in rows} == {run.name}


@pytest.mark.slow
def test_pictures_of_runs_and_of_a_schedule(run_main, run, tmp_path):
    for name, args in (("a.png", (run,)), ("b.png", ("--schedule", "debug")), ("c.pdf", (run, "--keys", "loss"))):
        done = run_main("plot", *args, "--out", tmp_path / name)
        assert "Warning" not in done.output
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
    assert (pixels[:8] == 255).all()
    assert (pixels[:, -4:] == 255).all()
    assert ((pixels == (0x1F, 0x6F, 0xB4)).all(-1)).sum() > 500  # the line is there


def test_the_schedule_of_a_config_whose_model_is_a_checkpoints(run_main, tmp_path):
    out = tmp_path / "schedule.csv"
    done = run_main("plot", "--schedule", "transfer/pets", "--samples", 3680, "--out", out)
    assert done.last_line == f"wrote {out}: 1400 iterations, 7 per epoch"
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


def test_a_picture_of_too_many_curves_is_refused(run_main, tmp_path):
    leave_log(tmp_path / "run", {"iter": 1, **{f"k{number}": 1.0 for number in range(41)}})
    done = run_main("plot", tmp_path / "run", "--out", tmp_path / "a.png", code=2)
    assert done.last_line.startswith("error: expected at most 40 panels and 500 curves, got 41 and 41: ")
    assert not (tmp_path / "a.png").exists()
    run_main("plot", tmp_path / "run", "--out", tmp_path / "a.csv")
    run_main("plot", tmp_path / "run", "--keys", "k0", "k40", "--out", tmp_path / "a.png")


def test_names_from_files_are_shown_as_names(run_main, tmp_path):
    folder = tmp_path / "\x1b[31mred"
    leave_log(folder, {"iter": 1, "\x1b]0;owned\x07loss\nerror: forged": 1.0})
    done = run_main("plot", folder, "--out", tmp_path / "a.csv")
    name = r"\x1b]0;owned\x07loss\nerror: forged"
    assert done.last_line == f"wrote {tmp_path}/a.csv: {name} of 1 run"
    row = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))[1]
    assert row == [r"\x1b[31mred", name, "1", "", "1.0"]
    done = run_main("plot", folder, "--keys", "\x1b[31m", "--out", tmp_path / "a.csv", code=2)
    assert "\x1b" not in done.output

"""``predict``, by running it."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from crate_mm import Predictor, init_model
from crate_mm.cli.predict import find_images
from crate_mm.datasets import Digits


@pytest.fixture
def photos(tmp_path):
    """Digits, a file that is no image, and names that a shell, a terminal or a spreadsheet takes for more."""
    folder = tmp_path / "photos"
    folder.mkdir()
    digits = Digits("test")
    for number, name in enumerate(("a.png", "c,d.png", "e\nf.png", "z.png", os.fsdecode(b"caf\xe9.png"))):
        digits[number][0].save(folder / name)
    (folder / "b.png").write_text("no image")
    return folder


def test_the_rows_are_the_predictors(run_main, debug_checkpoint, photos, tmp_path):
    out = tmp_path / "rows.csv"
    done = run_main("predict", debug_checkpoint, photos, "--out", out, "--top", 3, "--batch", 2)
    assert f"predicted 5 of 6 images, 1 cannot be read; written to {out}" in done.last_line
    assert done.last_line.endswith("file names written with an apostrophe or escapes: 2")
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = find_images([str(photos)])
    names = [str(file).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode() for file in files]
    assert [row["image"] for row in rows] == names
    expected = Predictor(init_model(None, debug_checkpoint), topk=3)(files)
    for row, prediction in zip(rows, expected):
        if not prediction:
            assert row["image"].endswith("b.png")
            assert row["error"] == prediction.reason
            assert {row[f"{kind}{rank}"] for kind in ("top", "score") for rank in (1, 2, 3)} == {""}
            continue
        assert [row[f"top{rank}"] for rank in (1, 2, 3)] == [name for name, _ in prediction]
        scores = [float(row[f"score{rank}"]) for rank in (1, 2, 3)]
        assert scores == pytest.approx([score for _, score in prediction], rel=1e-5)
        assert row["error"] == ""


def test_a_name_that_is_a_formula_is_written_as_text(run_main, debug_checkpoint, photos, tmp_path):
    Digits("test")[0][0].save(photos / "=1+1.png")
    out = tmp_path / "rows.csv"
    run_main("predict", debug_checkpoint, "=1+1.png", "--out", out, cwd=photos)
    assert out.read_text().splitlines()[1].startswith("'=1+1.png,")


def test_what_is_printed(run_main, debug_checkpoint, photos):
    done = run_main("predict", debug_checkpoint, "a.png", "[be]*.png", "--top", 2, cwd=photos)
    (name, score), _ = Predictor(init_model(None, debug_checkpoint))(photos / "a.png")[0][:2]
    lines = done.output.splitlines()[-4:]
    assert lines[0].startswith(f"a.png: {name} {100 * score:.1f} %, ")
    assert lines[1].startswith("b.png: cannot be read: cannot identify image file")
    assert lines[2].startswith("e\\nf.png: ")
    assert lines[3] == "predicted 2 of 3 images, 1 cannot be read"


def test_a_sheet_shows_what_the_model_gets(run_main, debug_checkpoint, photos, tmp_path):
    out = tmp_path / "sheet.png"
    done = run_main("predict", debug_checkpoint, photos, "--out", out, "--number", 4)
    assert done.last_line.endswith("2 more images are not on the sheet (--number)")
    with Image.open(out) as opened:
        sheet = np.asarray(opened.convert("RGB"))
    files = find_images([str(photos)])[:4]
    places = [(58, 28), (58, 208), (58, 388)]  # of rows of four or three, below a title of one line
    for file, (top, left) in zip(files, places):
        if file.name != "b.png":
            shown = np.asarray(Image.open(file)).repeat(20, 0).repeat(20, 1)
            assert (sheet[top : top + 160, left : left + 160] == shown[..., None]).all(), file
        else:
            assert (sheet[top + 150, left : left + 160] == (0xF1, 0xF3, 0xF4)).all()


def test_images_of_any_size_are_taken(run_main, debug_checkpoint, tmp_path):
    """The digits' test has no transforms, as all are of 8 x 8."""
    Image.new("RGB", (50, 31), "white").save(tmp_path / "large.png")
    run_main("predict", debug_checkpoint, tmp_path / "large.png")

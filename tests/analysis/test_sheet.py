"""Sheets: exact pixels, and text that fits."""

import numpy as np
import pytest
from PIL import Image

from crate_mm.analysis.figures import sheet
from crate_mm.analysis.figures.sheet import Panel, drawable, plot_sheet, save_sheet


@pytest.mark.parametrize("shape", [(8, 8), (28, 20, 1), (100, 90, 3), (224, 224, 3), (320, 200, 3)])
def test_every_pixel_is_there_as_often_as_the_others(shape, tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(3)]
    save_sheet(plot_sheet([Panel(image, ["a"]) for image in images], "title", columns=3), tmp_path / "s.png")
    pixels = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    times = max(sheet.SIDE // max(shape[:2]), 1)
    height, width = times * shape[0], times * shape[1]
    top = sheet.MARGIN + 30
    for number, image in enumerate(images):
        left = sheet.MARGIN + number * (max(width, sheet.CELL) + sheet.GAP)
        expected = image.reshape(*shape[:2], -1).repeat(times, 0).repeat(times, 1)
        assert (pixels[top : top + height, left : left + width] == expected).all()
    white = (pixels == 255).all(-1)
    assert white[:, : sheet.MARGIN].all()
    assert white[:, -sheet.MARGIN :].all()
    assert white[-sheet.MARGIN + 8 :].all()


def test_large_images_are_reduced():
    figure = plot_sheet([Panel(np.zeros((4000, 1000, 3), np.uint8))], "title")
    assert figure.images[0].get_array().shape == (320, 80, 3)


def test_text_never_leaves_its_cell(tmp_path):
    """Whatever a class is called: a picture whose texts are black on white has nothing between the columns."""
    lines = ["W" * 200, "$x_1$ and \\frac", "a\nb\x1b[31m", "中文" * 30, "\u202egnp"]
    panels = [Panel(np.full((8, 8), 255, np.uint8), lines), Panel(None, lines, "reason " * 100)]
    save_sheet(plot_sheet(panels, "T" * 500, columns=2), tmp_path / "s.png")
    white = (np.asarray(Image.open(tmp_path / "s.png").convert("RGB")) == 255).all(-1)
    between = slice(sheet.MARGIN + sheet.SIDE + 2, sheet.MARGIN + sheet.SIDE + sheet.GAP - 1)
    assert white[60:, between].all()
    assert white[:, -sheet.MARGIN + 2 :].all()
    assert white[-sheet.MARGIN + 8 :].all()
    assert not white[sheet.MARGIN + 30 + 160 :].all()


def test_what_no_font_has_is_escaped(monkeypatch):
    assert drawable("caf\udce9 \x1b[31m \u00e9 $x$") == "caf\\udce9 \\x1b[31m \u00e9 $x$"
    monkeypatch.setattr(sheet, "_font_with", lambda character: None)
    assert drawable("a中") == "a\\u4e2d"

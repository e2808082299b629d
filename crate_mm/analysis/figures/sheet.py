"""Sheets of images with lines of text below each, every pixel of an image a whole number of the sheet's pixels."""

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MplFigure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from PIL import Image

from ...io.files import atomic_file
from ...io.untrusted import sanitized

DPI = 100  # of a sheet, whose lengths below are in pixels
SIDE, MAX_SIDE = 160, 320  # small images are enlarged to the first at most, larger ones reduced to the second
MIN_WIDTH = 480  # of a sheet: its title needs some
CELL, MARGIN, GAP, LINE = 144, 28, 20, 15
SHAPE = 1.5  # width over height that a sheet is to have
SMALL, LARGE = 8, 10.5  # sizes of the text, in points
PLAIN = "DejaVu Sans"  # comes with matplotlib
DARK, GRAY, PALE, ACCENT = "#1a1a1a", "#5f6368", "#f1f3f4", "#b3261e"


class Panel(NamedTuple):
    """An image of a sheet.

    Args:
        pixels: uint8 ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)``, or None where there is no image.
        lines: below it, the first of them dark.
        reason: why there is no image, in its place.
        framed: whether the image has a frame, as what others are compared with.
    """

    pixels: np.ndarray | None
    lines: Sequence[str] = ()
    reason: str = ""
    framed: bool = False


def plot_sheet(panels: Sequence[Panel], title: str, columns: int | None = None) -> MplFigure:
    """Images in rows, with text.

    Args:
        panels: the images, at least one.
        title: above them.
        columns: in a row; as many as make the sheet half as wide again as it is high if not given.
    """
    images = [None if panel.pixels is None else _fitted(panel.pixels) for panel in panels]
    sizes = [image.shape[:2] for image in images if image is not None] or [(CELL, CELL)]
    height, width = max(h for h, _ in sizes), max(CELL, *(w for _, w in sizes))
    below = LINE * max(len(panel.lines) for panel in panels) + 6
    if columns is None:
        about = round(math.sqrt(SHAPE * len(panels) * (height + below + GAP) / (width + GAP)))
        near = (max(about + change, 1) for change in (0, 1, -1))
        columns = min(near, key=lambda columns: -len(panels) % columns)  # the last row as full as can be
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    total = max(2 * MARGIN + columns * width + (columns - 1) * GAP, MIN_WIDTH)
    text = _Text()
    heading = text.wrapped(title, total - 2 * MARGIN, LARGE, 3)
    above = MARGIN + 20 * len(heading) + 10
    whole = above + rows * (height + below) + (rows - 1) * GAP + MARGIN - 6
    # matplotlib before 3.11 cuts 100 * 2.01 = 200.99999999999997 pixels to 200.
    inches = ((total + 1e-6) / DPI, (whole + 1e-6) / DPI)
    figure = MplFigure(figsize=inches, dpi=DPI, facecolor="white")

    def write(x: float, y: float, line: str, size: float, color: str) -> None:
        figure.text(
            x / total, 1 - y / whole, line, size=size, color=color, va="top", family=_families(line), parse_math=False
        )

    for number, line in enumerate(heading):
        write(MARGIN, MARGIN + 20 * number, line, LARGE, DARK)
    for number, (panel, image) in enumerate(zip(panels, images)):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * (width + GAP), above + row * (height + below + GAP)
        if image is None:
            _box(figure, left, top, width, height, total, whole, facecolor=PALE, edgecolor="none")
            most = max((height - 12) // LINE, 1)
            for step, line in enumerate(text.wrapped(panel.reason, width - 16, SMALL, most)):
                write(left + 8, top + 8 + LINE * step, line, SMALL, ACCENT)
        else:
            figure.figimage(image, left, whole - top - image.shape[0], origin="upper")
            if panel.framed:
                edges = (left - 3, top - 3, image.shape[1] + 6, image.shape[0] + 6)
                _box(figure, *edges, total, whole, fill=False, edgecolor=ACCENT, linewidth=2)
        for step, line in enumerate(panel.lines):
            fits = text.shortened(line, width, SMALL)
            write(left, top + height + 6 + LINE * step, fits, SMALL, GRAY if step else DARK)
    return figure


def save_sheet(figure: MplFigure, file: str | Path) -> None:
    """Write a sheet, a PNG in its own pixels, or a PDF, by the file's ending."""
    with atomic_file(file) as opened:
        figure.savefig(opened, dpi=DPI, format=Path(file).suffix[1:].lower())


def _fitted(pixels: np.ndarray) -> np.ndarray:
    """An image as RGB, enlarged by a whole number if it is small, and reduced if it is larger than a sheet takes."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    times = SIDE // max(rgb.shape[:2])
    if times > 1:
        return rgb.repeat(times, axis=0).repeat(times, axis=1)
    if max(rgb.shape[:2]) > MAX_SIDE:
        image = Image.fromarray(np.ascontiguousarray(rgb))
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return np.asarray(image)
    return rgb


def _box(figure: MplFigure, left: float, top: float, width: float, height: float, total: float, whole: float, **how):
    corner = (left / total, 1 - (top + height) / whole)
    figure.patches.append(
        Rectangle(corner, width / total, height / whole, transform=figure.transFigure, figure=figure, **how)
    )


class _Text:
    """Measures text, and makes it fit."""

    def __init__(self) -> None:
        self.renderer = FigureCanvasAgg(MplFigure(dpi=DPI)).get_renderer()

    def width(self, text: str, size: float) -> float:
        font = FontProperties(family=_families(text), size=size)
        return self.renderer.get_text_width_height_descent(text, font, ismath=False)[0]

    def shortened(self, text: str, most: float, size: float) -> str:
        """A text that is at most so wide, cut in its middle: names differ at their ends."""
        text = drawable(text)
        if self.width(text, size) <= most:
            return text
        low, high = 0, len(text)
        while high - low > 1:
            kept = (low + high) // 2
            low, high = (kept, high) if self.width(_cut(text, kept), size) <= most else (low, kept)
        return _cut(text, low)

    def wrapped(self, text: str, most: float, size: float, lines: int) -> list[str]:
        """A text in lines that are at most so wide; what has no room is left out."""
        found: list[str] = []
        for word in drawable(text).split():
            longer = f"{found[-1]} {word}" if found else word
            if found and self.width(longer, size) <= most:
                found[-1] = longer
            elif len(found) == lines:
                found[-1] = self.shortened(f"{found[-1]} ...", most, size)
                break
            else:
                found.append(self.shortened(word, most, size))
        return found


def _cut(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def drawable(text: str) -> str:
    """A name as a picture can show it: on one line, and as ``\\u4e2d`` what no font of this machine has."""
    return "".join(
        c if c.isascii() or _font_with(c) else c.encode("unicode_escape").decode() for c in sanitized(text, 1000)
    )


def _families(text: str) -> list[str]:
    """The fonts that a text needs, the plain one first."""
    return list(dict.fromkeys([PLAIN, *(found for c in text if not c.isascii() and (found := _font_with(c)))]))


@lru_cache(maxsize=4096)
def _font_with(character: str) -> str | None:
    """A font that has a character, the plain one if it has it, or None."""
    plain = font_manager.get_font(font_manager.findfont(PLAIN))
    if plain.get_char_index(ord(character)) or unicodedata.combining(character):
        return PLAIN
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]  # of boxes
    for font in sorted(fonts, key=lambda font: (font.style != "normal", font.name)):
        try:
            if font_manager.get_font(font.fname).get_char_index(ord(character)):
                return font.name
        except (OSError, RuntimeError):  # a file that is gone, or of a kind that is not read
            continue
    return None

"""Sheets of images with lines of text below each image. Image pixels map to whole pixels of the sheet."""

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
from .style import InlineFigure

DPI = 100  # the lengths below are in pixels
SIDE, MAX_SIDE = 160, 320  # enlarge smaller images to at most SIDE, shrink larger ones to MAX_SIDE
MIN_WIDTH = 480  # minimum width of a sheet, so that its title fits
CELL, MARGIN, GAP, LINE = 144, 28, 20, 15
SHAPE = 1.5  # target ratio of width to height
SMALL, LARGE = 8, 10.5  # font sizes in points
PLAIN = "DejaVu Sans"  # shipped with matplotlib
DARK, GRAY, PALE, ACCENT = "#1a1a1a", "#5f6368", "#f1f3f4", "#b3261e"


class Panel(NamedTuple):
    """An image of a sheet.

    Attributes:
        pixels: uint8 ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)``, or None without an image.
        lines: text below the image; the first line is dark.
        reason: text in place of a missing image.
        framed: whether to frame the image, as the reference for the other images.
    """

    pixels: np.ndarray | None
    lines: Sequence[str] = ()
    reason: str = ""
    framed: bool = False


def plot_sheet(panels: Sequence[Panel], title: str, columns: int | None = None) -> MplFigure:
    """Plot images in rows, with text.

    Args:
        panels: the images, at least one.
        title: title of the sheet.
        columns: images per row (default: chosen so that width / height is near ``SHAPE``).
    """
    images = [None if panel.pixels is None else _fitted(panel.pixels) for panel in panels]
    sizes = [image.shape[:2] for image in images if image is not None] or [(CELL, CELL)]
    height, width = max(h for h, _ in sizes), max(CELL, *(w for _, w in sizes))
    below = LINE * max(len(panel.lines) for panel in panels) + 6
    if columns is None:
        about = round(math.sqrt(SHAPE * len(panels) * (height + below + GAP) / (width + GAP)))
        candidates = (max(about + change, 1) for change in (0, 1, -1))
        columns = min(candidates, key=lambda columns: -len(panels) % columns)  # fewest gaps in the last row
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    total = max(2 * MARGIN + columns * width + (columns - 1) * GAP, MIN_WIDTH)
    text = _Text()
    heading = text.wrapped(title, total - 2 * MARGIN, LARGE, 3)
    above = MARGIN + 20 * len(heading) + 10
    total_height = above + rows * (height + below) + (rows - 1) * GAP + MARGIN - 6
    # matplotlib before 3.11 truncates 100 * 2.01 = 200.99999999999997 pixels to 200.
    inches = ((total + 1e-6) / DPI, (total_height + 1e-6) / DPI)
    figure = InlineFigure(figsize=inches, dpi=DPI, facecolor="white")

    def write(x: float, y: float, line: str, size: float, color: str) -> None:
        figure.text(
            x / total,
            1 - y / total_height,
            line,
            size=size,
            color=color,
            va="top",
            family=_families(line),
            parse_math=False,
        )

    for number, line in enumerate(heading):
        write(MARGIN, MARGIN + 20 * number, line, LARGE, DARK)
    for number, (panel, image) in enumerate(zip(panels, images)):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * (width + GAP), above + row * (height + below + GAP)
        if image is None:
            _box(figure, left, top, width, height, total, total_height, facecolor=PALE, edgecolor="none")
            max_lines = max((height - 12) // LINE, 1)
            for step, line in enumerate(text.wrapped(panel.reason, width - 16, SMALL, max_lines)):
                write(left + 8, top + 8 + LINE * step, line, SMALL, ACCENT)
        else:
            figure.figimage(image, left, total_height - top - image.shape[0], origin="upper")
            if panel.framed:
                edges = (left - 3, top - 3, image.shape[1] + 6, image.shape[0] + 6)
                _box(figure, *edges, total, total_height, fill=False, edgecolor=ACCENT, linewidth=2)
        for step, line in enumerate(panel.lines):
            fits = text.shortened(line, width, SMALL)
            write(left, top + height + 6 + LINE * step, fits, SMALL, GRAY if step else DARK)
    return figure


def save_sheet(figure: MplFigure, file: str | Path) -> None:
    """Write a sheet as PNG, without resampling, or as PDF, by the file's extension."""
    with atomic_file(file) as stream:
        figure.savefig(stream, dpi=DPI, format=Path(file).suffix[1:].lower())


def _fitted(pixels: np.ndarray) -> np.ndarray:
    """Return an image as RGB, enlarged by an integer factor if small, shrunk if larger than ``MAX_SIDE``."""
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


def _box(
    figure: MplFigure, left: float, top: float, width: float, height: float, total: float, total_height: float, **style
):
    corner = (left / total, 1 - (top + height) / total_height)
    figure.patches.append(
        Rectangle(corner, width / total, height / total_height, transform=figure.transFigure, figure=figure, **style)
    )


class _Text:
    """Measure text and fit it into a width."""

    def __init__(self) -> None:
        self.renderer = FigureCanvasAgg(MplFigure(dpi=DPI)).get_renderer()

    def width(self, text: str, size: float) -> float:
        font = FontProperties(family=_families(text), size=size)
        return self.renderer.get_text_width_height_descent(text, font, ismath=False)[0]

    def shortened(self, text: str, max_width: float, size: float) -> str:
        """Return a text of at most this width, shortened in the middle because names differ at their ends."""
        text = drawable(text)
        if self.width(text, size) <= max_width:
            return text
        low, high = 0, len(text)
        while high - low > 1:
            length = (low + high) // 2
            low, high = (length, high) if self.width(_cut(text, length), size) <= max_width else (low, length)
        return _cut(text, low)

    def wrapped(self, text: str, max_width: float, size: float, lines: int) -> list[str]:
        """Return a text in at most ``lines`` lines of at most this width; the rest is dropped."""
        wrapped: list[str] = []
        for word in drawable(text).split():
            longer = f"{wrapped[-1]} {word}" if wrapped else word
            if wrapped and self.width(longer, size) <= max_width:
                wrapped[-1] = longer
            elif len(wrapped) == lines:
                wrapped[-1] = self.shortened(f"{wrapped[-1]} ...", max_width, size)
                break
            else:
                wrapped.append(self.shortened(word, max_width, size))
        return wrapped


def _cut(text: str, length: int) -> str:
    return f"{text[: length - length // 2]}…{text[len(text) - length // 2 :]}"


def drawable(text: str) -> str:
    """Return a name on one line. Characters without an installed font become escapes such as ``\\u4e2d``."""
    return "".join(
        c if c.isascii() or _font_with(c) else c.encode("unicode_escape").decode() for c in sanitized(text, 1000)
    )


def _families(text: str) -> list[str]:
    """Return the fonts that a text needs, ``PLAIN`` first."""
    return list(dict.fromkeys([PLAIN, *(font for c in text if not c.isascii() and (font := _font_with(c)))]))


@lru_cache(maxsize=4096)
def _font_with(character: str) -> str | None:
    """Return a font with a character, preferably ``PLAIN``, or None."""
    plain = font_manager.get_font(font_manager.findfont(PLAIN))
    if plain.get_char_index(ord(character)) or unicodedata.combining(character):
        return PLAIN
    # The font Last Resort draws every character as a box.
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]
    for font in sorted(fonts, key=lambda font: (font.style != "normal", font.name)):
        try:
            if font_manager.get_font(font.fname).get_char_index(ord(character)):
                return font.name
        except (OSError, RuntimeError):  # the file is gone or its format is not supported
            continue
    return None

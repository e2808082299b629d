"""Styles of figures: for a screen, or for a paper with its column width, font size and embedded fonts."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure as MplFigure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

STYLES = ("screen", "paper")
PAPER_WIDTH = 5.5  # inches: the text of a NeurIPS or ICLR paper
PAPER_FONT = 8.0  # points
MAX_COLUMNS = 6

_width: ContextVar[float | None] = ContextVar("width", default=None)


class InlineFigure(MplFigure):
    """A matplotlib figure that notebooks show as it is, without pyplot and its backend."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=self.dpi)
        return picture.getvalue()


@contextmanager
def figure_style(kind: str = "screen", width: float | None = None, font_size: float | None = None) -> Iterator[None]:
    """Context in which figures are made and saved in a style.

    Args:
        kind: 'screen', or 'paper' (fixed width, embedded TrueType fonts, 300 dpi).
        width: width of a figure for a paper, in inches (default: 5.5).
        font_size: font size of a figure for a paper, in points (default: 8). Titles and labels scale with it.

    Raises:
        ValueError: the style is unknown, or a size is given for the screen or out of range.
    """
    if kind not in STYLES:
        raise ValueError(f"unknown style {kind!r}: choose {', '.join(STYLES)}")
    if kind == "screen" and (width or font_size):
        raise ValueError("width and font size apply only to the paper style: add --style paper")
    for name, value, low, high in (("width", width, 1, 40), ("font size", font_size, 3, 40)):
        if value is not None and not low <= value <= high:
            raise ValueError(f"the {name} must be from {low} to {high}, got {value:g}")
    settings = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "savefig.dpi": 150}
    if kind == "paper":
        settings |= {"font.size": font_size or PAPER_FONT, "savefig.dpi": 300, "axes.linewidth": 0.6}
        settings |= {
            f"{axis}tick.major.{key}": value for axis in "xy" for key, value in (("width", 0.6), ("size", 2.5))
        }
        settings |= {"lines.linewidth": 1.2, "lines.markersize": 3}
    token = _width.set((width or PAPER_WIDTH) if kind == "paper" else None)
    try:
        with matplotlib.rc_context(settings):
            yield
    finally:
        _width.reset(token)


def sheet(width: float, height: float, text: float = 0.0) -> InlineFigure:
    """Return an empty figure of this size. In the paper style, the size is scaled to the paper's width.

    Args:
        width, height: size in inches.
        text: part of the height for lines of text, in inches; it does not scale with the panels.
    """
    page = _width.get()
    if page is not None:
        text *= matplotlib.rcParams["font.size"] / 10
        width, height = page, (height - text) * page / width + text
    return InlineFigure(figsize=(width, height), layout="constrained")


def columns_of(count: int, max_columns: int = MAX_COLUMNS) -> int:
    """Return the number of columns for ``count`` panels that fills the last row best."""
    return math.ceil(count / math.ceil(count / max_columns))


def panel_grid(
    count: int, size: float, max_columns: int = MAX_COLUMNS, reserved: int = 0
) -> tuple[MplFigure, list, GridSpec]:
    """Return a figure with equal square panels row by row.

    Args:
        count: number of panels.
        size: side of a panel, in inches on a screen.
        max_columns: maximum number of panels per row.
        reserved: inches reserved below the panels, as the last row of the grid.

    Returns:
        The figure, the axes of the panels, and the grid. Row ``[-1, :]`` of the grid is the reserved row.
    """
    columns = columns_of(count, max_columns)
    rows = math.ceil(count / columns)
    figure = sheet(size * columns + 0.8, size * rows + 0.5 + reserved, text=0.3 * rows + 0.2)
    ratios = [size] * rows + ([reserved] if reserved else [])
    grid = figure.add_gridspec(len(ratios), columns, height_ratios=ratios)
    panels = [figure.add_subplot(grid[number // columns, number % columns]) for number in range(count)]
    return figure, panels, grid


def layer_axis(axes: Axes, first: int, last: int) -> None:
    """Label the x axis with integer layer indices."""
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_xlabel(r"Layer index $\ell$", fontsize="small")
    # The default minimum of two ticks would show fractions around a single layer.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def color_bar(figure: MplFigure, image: ScalarMappable, panels: list[Axes], extend: str = "neither") -> Colorbar:
    """Add a narrow color bar, right of the panels that share its scale."""
    bar = figure.colorbar(
        image, ax=panels, extend=extend, extendfrac=0.02, aspect=figure.get_figheight() / 0.12, pad=0.01
    )
    bar.ax.tick_params(labelsize="x-small")
    return bar

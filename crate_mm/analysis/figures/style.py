"""How figures look: on a screen, or set into a paper's column with its font size and embedded fonts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure as MplFigure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

STYLES = ("screen", "paper")
PAPER_WIDTH = 5.5  # inches: the text of a NeurIPS or ICLR paper
PAPER_FONT = 8.0  # points
MAX_COLUMNS = 6

_width: ContextVar[float | None] = ContextVar("width", default=None)


@contextmanager
def figure_style(kind: str = "screen", width: float | None = None, font_size: float | None = None) -> Iterator[None]:
    """Make and save figures in a style, inside its ``with``.

    Args:
        kind: 'screen', or 'paper': of a given width, whose fonts are embedded as TrueType, at 300 dots an inch.
        width: of a paper's figure in inches; 5.5 if not given.
        font_size: of a paper's figure in points; 8 if not given. Titles and labels follow it.

    Raises:
        ValueError: an unknown style, a size for the screen, or a size that is none.
    """
    if kind not in STYLES:
        raise ValueError(f"unknown style {kind!r}: choose {', '.join(STYLES)}")
    if kind == "screen" and (width or font_size):
        raise ValueError("a width and a font size are those of a paper's figure: add --style paper")
    for name, value, least, most in (("width", width, 1, 40), ("font size", font_size, 3, 40)):
        if value is not None and not least <= value <= most:
            raise ValueError(f"the {name} must be from {least} to {most}, got {value:g}")
    settings = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "savefig.dpi": 150}
    if kind == "paper":
        settings |= {"font.size": font_size or PAPER_FONT, "savefig.dpi": 300, "axes.linewidth": 0.6}
        settings |= {
            f"{axis}tick.major.{part}": value for axis in "xy" for part, value in (("width", 0.6), ("size", 2.5))
        }
        settings |= {"lines.linewidth": 1.2, "lines.markersize": 3}
    before = _width.set((width or PAPER_WIDTH) if kind == "paper" else None)
    try:
        with matplotlib.rc_context(settings):
            yield
    finally:
        _width.reset(before)


def sheet(width: float, height: float, text: float = 0.0) -> MplFigure:
    """An empty picture, so large on a screen; in a paper its width is the paper's, and its height follows.

    Args:
        width, height: in inches.
        text: inches of the height that lines of text take, which do not shrink with the panels.
    """
    page = _width.get()
    if page is not None:
        text *= matplotlib.rcParams["font.size"] / 10
        width, height = page, (height - text) * page / width + text
    return MplFigure(figsize=(width, height), layout="constrained")


def columns_of(count: int, most: int = MAX_COLUMNS) -> int:
    """Into how many columns so many panels go, so that the last row is as full as can be."""
    return math.ceil(count / math.ceil(count / most))


def panel_grid(count: int, size: float, most: int = MAX_COLUMNS, beside: int = 0) -> tuple[MplFigure, list, GridSpec]:
    """Equal square panels row by row.

    Args:
        count: of the panels.
        size: of a panel, in inches on a screen.
        most: panels in a row.
        beside: so many inches below the panels are for something else, the last row of the grid.

    Returns:
        The picture, the axes, and the grid, in which ``[-1, :]`` is what is below the panels.
    """
    columns = columns_of(count, most)
    rows = math.ceil(count / columns)
    figure = sheet(size * columns + 0.8, size * rows + 0.5 + beside, text=0.3 * rows + 0.2)
    ratios = [size] * rows + ([beside] if beside else [])
    grid = figure.add_gridspec(len(ratios), columns, height_ratios=ratios)
    panels = [figure.add_subplot(grid[number // columns, number % columns]) for number in range(count)]
    return figure, panels, grid


def layer_axis(axes: Axes, first: int, last: int) -> None:
    """Label the x axis with layer indices, whole numbers for any count of layers."""
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_xlabel(r"Layer index $\ell$", fontsize="small")
    # By default a locator shows at least two ticks, so it would put fractions around a single layer.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def color_bar(figure: MplFigure, image: AxesImage, panels: list[Axes], extend: str = "neither") -> Colorbar:
    """A narrow bar of the colours of an image, right of the panels that share them."""
    bar = figure.colorbar(
        image, ax=panels, extend=extend, extendfrac=0.02, aspect=figure.get_figheight() / 0.12, pad=0.01
    )
    bar.ax.tick_params(labelsize="x-small")
    return bar

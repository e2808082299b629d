"""Measure every layer over many images, in constant memory.

Shapes: B images, N tokens, d embedding dimensions, L layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor, nn

from ..registry import FIGURES
from .table import MEASURES, Settings, check_measures
from .taps import find_layers, name_of, read_taps


class Moments:
    """Streaming mean and standard deviation (Chan's update, in float64)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Add one number per sample, ``(B,)``."""
        values = values.detach().double()
        mean, squares = values.mean().item(), (values - values.mean()).square().sum().item()
        n, m = self.count, len(values)
        delta = mean - self.mean
        self.count = n + m
        self.mean += delta * m / self.count
        self._squares += squares + delta**2 * n * m / self.count

    @property
    def std(self) -> float:
        """Standard deviation over the samples; NaN for fewer than two."""
        return (self._squares / (self.count - 1)) ** 0.5 if self.count > 1 else float("nan")


class LayerRow(NamedTuple):
    """One measure of one layer over the images. The first layer is 1, as in the paper."""

    measure: str
    layer: int
    mean: float
    std: float
    count: int


class LayerMeasures:
    """Measures of layers, collected by ``measure_layers``."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str, int], Moments] = {}

    def take(self, measure: str, layer: int, values: Tensor) -> None:
        """Add a measure of a layer, counted from 0: one number per sample, ``(B,)``."""
        self.moments.setdefault((measure, layer), Moments()).update(values)

    def rows(self) -> list[LayerRow]:
        """Return all rows, ordered by measure and layer."""
        order = {name: number for number, name in enumerate(MEASURES)}
        keys = sorted(self.moments, key=lambda key: (order[key[0]], key[1]))
        return [LayerRow(m, l + 1, (s := self.moments[m, l]).mean, s.std, s.count) for m, l in keys]  # noqa: E741

    def means(self, measure: str) -> list[float]:
        """Return a measure's mean for each layer; empty if the model does not define the measure."""
        return [row.mean for row in self.rows() if row.measure == measure]

    def __repr__(self) -> str:
        means: dict[int, dict[str, str]] = {}
        for row in self.rows():
            means.setdefault(row.layer, {})[row.measure] = f"{row.mean:.4g}"
        if not means:
            return "LayerMeasures: nothing measured yet"
        names = list(dict.fromkeys(row.measure for row in self.rows()))
        table = [["layer", *names], *([str(layer), *(m.get(n, "-") for n in names)] for layer, m in means.items())]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table]
        return "\n".join([f"LayerMeasures of {max(m.count for m in self.moments.values())} samples, means", *lines])

    def to_frame(self):
        """Return ``rows()`` as a pandas DataFrame: columns measure, layer (from 1), mean, std and count.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("to_frame() needs pandas, which is not installed: pip install pandas") from None
        return pandas.DataFrame(self.rows(), columns=LayerRow._fields)

    def plot(self, *measures: str) -> Figure:
        """Plot measures (default: all) by layer, one panel each, with a band of one standard deviation over samples.

        Raises:
            ValueError: a measure is unknown, or was not measured.
        """
        check_measures(list(measures))
        measured = list(dict.fromkeys(row.measure for row in self.rows()))
        missing = [name for name in measures if name not in measured]
        if not measured:
            raise ValueError("nothing is measured yet: run the model on images first")
        if missing:
            raise ValueError(f"{missing[0]} was not measured: choose from {', '.join(measured)}")
        return FIGURES.get("layers").plot({"": self.rows()}, list(measures) or measured)


def defined_measures(model: nn.Module) -> list[str]:
    """Return the measures that are defined for at least one layer of a model."""
    layers = find_layers(model).values()
    return [name for name, row in MEASURES.items() if any(row.defined_for(step) for step in layers)]


@contextmanager
def measure_layers(
    model: nn.Module,
    layers: list[int] | None = None,
    eps_squared: float = 0.01,
    unit_length: bool = True,
    measures: list[str] | None = None,
    into: LayerMeasures | None = None,
) -> Iterator[LayerMeasures]:
    """Measure each layer in every forward pass while the context is open::

        with measure_layers(model) as measures, torch.inference_mode():
            for images in batches:
                model(images)
        measures.means("rc_half")  # by layer

    Measures that a layer does not define are omitted. CRATE does not define 'active' and 'sparsity_step1'. A ViT
    defines only 'r_out' and 'active'. The model is not changed.

    Args:
        model: a model whose layers are ``Layer``.
        layers: numbers of the layers (default: all).
        eps_squared: eps^2 of the coding rates, Eqs. (7) and (8).
        unit_length: scale tokens to unit length first (within each head for R^c), as the official code does.
        measures: names from ``MEASURES`` (default: all).
        into: destination of the measures (default: a new ``LayerMeasures``).

    Raises:
        ValueError: a layer does not exist, or the model defines none of the measures.
    """
    names = list(MEASURES) if measures is None else list(measures)
    check_measures(names)
    settings, selected = Settings(eps_squared, unit_length), find_layers(model, layers)
    layer_measures = LayerMeasures() if into is None else into
    defined = {layer: [MEASURES[n] for n in names if MEASURES[n].defined_for(step)] for layer, step in selected.items()}
    taps = sorted({row.tap for rows in defined.values() for row in rows})
    if not taps:
        raise ValueError(f"{name_of(model)} has none of {', '.join(names)}: choose from {defined_measures(model)}")

    def reader(tap: str):
        def read(layer: int, tensor: Tensor) -> None:
            for row in defined[layer]:
                if row.tap == tap:
                    layer_measures.take(row.name, layer, row.compute(tensor, selected[layer], settings))

        return read

    with read_taps(model, {tap: reader(tap) for tap in taps}, layers):
        yield layer_measures

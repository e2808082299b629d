"""The measures of every layer over many images, in a stream: memory does not grow with their number.

Shapes: B images, N tokens, d embedding dimensions, L layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from .table import MEASURES, Settings, check_measures
from .taps import find_layers, name_of, read_taps


class Moments:
    """Mean and standard deviation of numbers that come in batches (Chan's update, in float64)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Take in a number a sample, ``(B,)``."""
        values = values.detach().double()
        mean, squares = values.mean().item(), (values - values.mean()).square().sum().item()
        n, m = self.count, len(values)
        delta = mean - self.mean
        self.count = n + m
        self.mean += delta * m / self.count
        self._squares += squares + delta**2 * n * m / self.count

    @property
    def std(self) -> float:
        """Standard deviation over the samples; NaN for less than two."""
        return (self._squares / (self.count - 1)) ** 0.5 if self.count > 1 else float("nan")


class LayerRow(NamedTuple):
    """One measure of one layer (the first is 1, as in the paper) over the images."""

    measure: str
    layer: int
    mean: float
    std: float
    count: int


class LayerMeasures:
    """What ``measure_layers`` has gathered."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str, int], Moments] = {}

    def take(self, measure: str, layer: int, values: Tensor) -> None:
        """Take in a measure of a layer, counted from 0, a number a sample ``(B,)``."""
        self.moments.setdefault((measure, layer), Moments()).update(values)

    def rows(self) -> list[LayerRow]:
        """All there is, measure by measure and layer by layer."""
        order = {name: number for number, name in enumerate(MEASURES)}
        keys = sorted(self.moments, key=lambda key: (order[key[0]], key[1]))
        return [LayerRow(m, l + 1, (s := self.moments[m, l]).mean, s.std, s.count) for m, l in keys]  # noqa: E741

    def means(self, measure: str) -> list[float]:
        """A measure's mean, layer by layer; empty if the model does not have it."""
        return [row.mean for row in self.rows() if row.measure == measure]


def defined_measures(model: nn.Module) -> list[str]:
    """The measures that are defined for at least one layer of a model."""
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
    """Gather the measures of each layer from the forward passes while the context is open::

        with measure_layers(model) as measures, torch.inference_mode():
            for images in batches:
                model(images)
        measures.means("rc_half")  # by layer

    What a layer does not have is not there: of ``MEASURES``, CRATE has no 'active' and no 'sparsity_step1', a ViT has
    'r_out' and 'active' alone. The model is left as it was.

    Args:
        model: one whose layers are ``Layer``.
        layers: which layers, all if not given.
        eps_squared: of the coding rates, Eqs. (7) and (8).
        unit_length: scale tokens to unit length first (within each head for R^c), as the official code does.
        measures: which of ``MEASURES``, all if not given.
        into: what takes the measures in; a new ``LayerMeasures`` if not given.

    Raises:
        ValueError: the model has no such layer, or none of the measures.
    """
    names = list(MEASURES) if measures is None else list(measures)
    check_measures(names)
    settings, found = Settings(eps_squared, unit_length), find_layers(model, layers)
    gathered = LayerMeasures() if into is None else into
    defined = {layer: [MEASURES[n] for n in names if MEASURES[n].defined_for(step)] for layer, step in found.items()}
    taps = sorted({row.tap for rows in defined.values() for row in rows})
    if not taps:
        raise ValueError(f"{name_of(model)} has none of {', '.join(names)}, it has {defined_measures(model)}")

    def reader(tap: str):
        def read(layer: int, passed: Tensor) -> None:
            for row in defined[layer]:
                if row.tap == tap:
                    gathered.take(row.name, layer, row.compute(passed, found[layer], settings))

        return read

    with read_taps(model, {tap: reader(tap) for tap in taps}, layers):
        yield gathered

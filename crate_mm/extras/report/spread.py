"""Streaming histograms and differences, in constant memory."""

import math

from torch import Tensor

from ...analysis.gather import LayerMeasures, Moments

BINS = 40  # maximum number of bins of a histogram
_FINEST = -60  # exponent of the finest bin width, 2^-60


class Histogram:
    """Counts in bins of width 2^k, for the smallest k that needs at most ``BINS`` bins.

    A bin of width 2^(k+1) joins two bins of width 2^k. Counts are therefore exact and independent of the order of the
    numbers.
    """

    def __init__(self) -> None:
        self.exponent, self.counts = _FINEST, {}

    def update(self, values: list[float]) -> None:
        """Add finite numbers."""
        for value in values:
            index = math.floor(math.ldexp(value, -self.exponent))
            self.counts[index] = self.counts.get(index, 0) + 1
            while max(self.counts) - min(self.counts) >= BINS:
                merged: dict[int, int] = {}
                for old, count in self.counts.items():
                    merged[old >> 1] = merged.get(old >> 1, 0) + count
                self.counts, self.exponent = merged, self.exponent + 1

    def data(self) -> dict:
        """Return ``{'start': start of the first bin, 'width': bin width, 'counts': [...]}``; width 0 for one bin."""
        first, last = min(self.counts), max(self.counts)
        width = 0.0 if first == last else math.ldexp(1.0, self.exponent)
        counts = [self.counts.get(index, 0) for index in range(first, last + 1)]
        return {"start": math.ldexp(first, self.exponent), "width": width, "counts": counts}


PAIRS = {"rc_half": "rc_z"}  # a measure after a step -> the same measure before the step


class Spreads(LayerMeasures):
    """``LayerMeasures`` with histograms, and with differences within each sample: from the same measure of the first
    layer, and from the measure in ``PAIRS``."""

    def __init__(self) -> None:
        super().__init__()
        self.histograms: dict[tuple[str, int], Histogram] = {}
        self.differences: dict[tuple[str, str, int], Moments] = {}
        self._latest: dict[tuple[str, int], Tensor] = {}  # values of the current batch

    def take(self, measure: str, layer: int, values: Tensor) -> None:
        super().take(measure, layer, values)
        numbers = values.detach().double().tolist()
        self.histograms.setdefault((measure, layer), Histogram()).update(numbers)
        self._latest[measure, layer] = values
        others = {"first": (measure, 0), "before": (PAIRS.get(measure, ""), layer)}
        for name, key in others.items():
            if key in self._latest and key != (measure, layer):
                difference = values.double() - self._latest[key].double()
                self.differences.setdefault((name, measure, layer), Moments()).update(difference)

    def data(self, layer: int) -> dict[str, dict]:
        """Return the statistics of each measure of a layer, counted from 0."""
        statistics = {}
        for (measure, number), moments in self.moments.items():
            if number == layer:
                statistics[measure] = {**_moments(moments), "histogram": self.histograms[measure, number].data()}
                for name in ("first", "before"):
                    difference = self.differences.get((name, measure, layer))
                    statistics[measure][f"from_{name}"] = None if difference is None else _moments(difference)
        return statistics


def _moments(moments: Moments) -> dict:
    return {"mean": moments.mean, "std": None if moments.count < 2 else moments.std, "count": moments.count}

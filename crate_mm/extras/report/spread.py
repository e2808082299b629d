"""How numbers spread that come one batch after the other, in memory that does not grow with their number."""

import heapq
import math

from torch import Tensor

from ...analysis.gather import LayerMeasures, Moments

BINS = 40  # at most, in a histogram
ENDS = 3  # how many samples are remembered at either end
_FINEST = -60  # the finest width of a bin is 2 to this power


class Histogram:
    """Counts in bins of width 2^k, for the smallest k with which there are at most ``BINS`` bins.

    A bin of width 2^(k+1) is two of width 2^k, so that the counts are exact, and the same in whatever order the numbers
    come.
    """

    def __init__(self) -> None:
        self.exponent, self.counts = _FINEST, {}

    def update(self, values: list[float]) -> None:
        """Take in finite numbers."""
        for value in values:
            number = math.floor(math.ldexp(value, -self.exponent))
            self.counts[number] = self.counts.get(number, 0) + 1
            while max(self.counts) - min(self.counts) >= BINS:
                merged: dict[int, int] = {}
                for old, count in self.counts.items():
                    merged[old >> 1] = merged.get(old >> 1, 0) + count
                self.counts, self.exponent = merged, self.exponent + 1

    def data(self) -> dict:
        """``{'start': of the first bin, 'width': of each, 'counts': [...]}``; width 0 where all numbers are alike."""
        first, last = min(self.counts), max(self.counts)
        width = 0.0 if first == last else math.ldexp(1.0, self.exponent)
        counts = [self.counts.get(number, 0) for number in range(first, last + 1)]
        return {"start": math.ldexp(first, self.exponent), "width": width, "counts": counts}


class Ends:
    """The samples with the smallest and the largest numbers, ``ENDS`` at either end, of equal ones the first."""

    def __init__(self) -> None:
        self._low: list[tuple[float, int]] = []
        self._high: list[tuple[float, int]] = []

    def update(self, values: list[float], positions: list[int]) -> None:
        """Take in numbers and whose they are."""
        for value, position in zip(values, positions):
            for heap, sign in ((self._low, -1), (self._high, 1)):
                heapq.heappush(heap, (sign * value, -position))
                if len(heap) > ENDS:
                    heapq.heappop(heap)

    @property
    def low(self) -> list[tuple[int, float]]:
        """(position, number), the smallest number first."""
        return [(-position, -value) for value, position in sorted(self._low, reverse=True)]

    @property
    def high(self) -> list[tuple[int, float]]:
        """(position, number), the largest number first."""
        return [(-position, value) for value, position in sorted(self._high, reverse=True)]


class Spreads(LayerMeasures):
    """``LayerMeasures`` that keeps, besides mean and deviation, a histogram and the samples at the ends.

    ``positions`` must be set to those of the batch's samples before the batch passes the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.positions: list[int] = []
        self.histograms: dict[tuple[str, int], Histogram] = {}
        self.ends: dict[tuple[str, int], Ends] = {}

    def take(self, measure: str, layer: int, values: Tensor) -> None:
        super().take(measure, layer, values)
        numbers = values.detach().double().tolist()
        self.histograms.setdefault((measure, layer), Histogram()).update(numbers)
        self.ends.setdefault((measure, layer), Ends()).update(numbers, self.positions)

    def data(self, layer: int) -> dict[str, dict]:
        """Of each measure of a layer, counted from 0, all that is known."""
        told = {}
        for (measure, of), moments in self.moments.items():
            if of == layer:
                ends = self.ends[measure, of]
                told[measure] = {**_moments(moments), "histogram": self.histograms[measure, of].data()}
                told[measure] |= {"low": ends.low, "high": ends.high}
        return told


def _moments(moments: Moments) -> dict:
    return {"mean": moments.mean, "std": None if moments.count < 2 else moments.std, "count": moments.count}

"""How measured values were spread, without keeping them."""

from bisect import bisect_left
from collections.abc import Sequence


class Distribution:
    """How values were spread: a count per bucket, and their sum."""

    __slots__ = ("_merged", "bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._merged = 0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def merge(self, counts: Sequence[int], nanoseconds: int) -> None:
        """Take in what somebody else has counted; other buckets than ours are left out."""
        if len(counts) == len(self.counts):
            self.counts = [ours + theirs for ours, theirs in zip(self.counts, counts, strict=True)]
            self._merged += nanoseconds

    def nanoseconds(self) -> int:
        """Return the sum over all of us: whole, so that the order of adding makes no difference."""
        return round(self.sum * 1e9) + self._merged

    def cumulated(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus has them: each with all below it."""
        total = 0
        buckets = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets

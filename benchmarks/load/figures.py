"""From raw runs to figures: medians, spreads, and ratios that are taken within a round."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Figure:
    """A median with the smallest and the largest value behind it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """None when there is nothing to tell."""
        seen = list(values)
        if not seen:
            return None
        return cls(statistics.median(seen), min(seen), max(seen), len(seen))


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Figure | None:
    """How many times more, round by round: what slowed the machine slowed both."""
    return Figure.of(ours[r] / theirs[r] for r in ours.keys() & theirs.keys() if theirs[r])


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Figure | None:
    """How much more, round by round."""
    return Figure.of(ours[r] - theirs[r] for r in ours.keys() & theirs.keys())


def number(value: float) -> str:
    """Three digits that count, and no more than the measurement is worth."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(figure: Figure | None) -> str:
    """`4.82 (4.71 to 5.10)`, or a dash when there is nothing to tell."""
    if figure is None:
        return NOTHING
    if figure.count == 1:
        return number(figure.median)
    return f"{number(figure.median)} ({number(figure.low)} to {number(figure.high)})"


def median(figure: Figure | None, unit: str = "") -> str:
    return NOTHING if figure is None else f"{number(figure.median)}{unit}"

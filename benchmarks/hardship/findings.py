"""What was measured, beside what may be. No I/O.

Rule 1: a finding is a number that must not exceed another one. What has no limit is only told.
Rule 2: a figure that does not hold on a machine that others used too is `UNDECIDED`, not a pass.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

BUSY = 0.25  # of one core that others used meanwhile: above it a delay need not be ours


class Verdict(StrEnum):
    """What a figure says."""

    HOLDS = "holds"
    FAILS = "DOES NOT HOLD"
    UNDECIDED = "undecided"
    TOLD = "-"  # has no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure of one hardship."""

    what: str
    measured: float
    unit: str
    limit: float | None = None  # the most that it may be
    doubt: str = ""  # why a figure beyond its limit may not be ours

    @property
    def verdict(self) -> Verdict:
        if self.limit is None:
            return Verdict.TOLD
        if self.measured <= self.limit:
            return Verdict.HOLDS
        return Verdict.UNDECIDED if self.doubt else Verdict.FAILS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordeal:
    """One hardship that was gone through."""

    name: str
    story: str
    seconds: float
    others: float  # cores that processes which are not ours kept busy meanwhile
    findings: tuple[Finding, ...]
    broken: str = ""  # why it could not be finished

    @property
    def busy(self) -> bool:
        return self.others > BUSY

    @property
    def verdict(self) -> Verdict:
        """The worst one of its figures."""
        if self.broken:
            return Verdict.FAILS
        seen = {finding.verdict for finding in self.findings}
        for worst in (Verdict.FAILS, Verdict.UNDECIDED):
            if worst in seen:
                return worst
        return Verdict.HOLDS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        findings = tuple(Finding(**each) for each in document["findings"])
        return cls(**{**document, "findings": findings})


def exit_code(ordeals: Iterable[Ordeal]) -> int:
    """1 when a figure does not hold, 2 when one could not be decided, else 0."""
    seen = {ordeal.verdict for ordeal in ordeals}
    return 1 if Verdict.FAILS in seen else 2 if Verdict.UNDECIDED in seen else 0


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank: a value that was really seen."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def paired(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times more, round by round; the median of the rounds."""
    return statistics.median(b / a for a, b in zip(theirs, ours, strict=True))


def growth(samples: Sequence[tuple[float, float]], since: float) -> float:
    """How much more the last tenth of (time, value) has than the tenth after `since`.

    Medians of both, so that one page more or less at the wrong moment is no trend.
    """
    steady = [sample for sample in samples if sample[0] >= since]
    if len(steady) < 2:
        raise ValueError("too few samples to see a trend")
    tenth = max(1, len(steady) // 10)
    first = statistics.median(value for _, value in steady[:tenth])
    return statistics.median(value for _, value in steady[-tenth:]) - first


def out_of_order(closed: Sequence[int]) -> int:
    """How many of the numbers in the order of their closing come after a younger one."""
    wrong = 0
    youngest = -1
    for number in closed:
        wrong += number < youngest
        youngest = max(youngest, number)
    return wrong

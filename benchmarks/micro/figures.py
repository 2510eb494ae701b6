"""From samples to figures, and from two runs to a comparison. Pure."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple, Self

LIBRARIES = ("uvloop", "httptools", "orjson", "msgspec", "uvicorn")
NOTEWORTHY = 0.15  # two runs of the same code have differed by a tenth


class Sample(NamedTuple):
    """One repeat."""

    ns: float  # per call
    calibration_ns: float  # per pass of the calibration loop, around this repeat


@dataclass(frozen=True, slots=True)
class Figure:
    """What one benchmark has shown; nanoseconds of CPU per unit."""

    name: str
    unit: str
    count: int  # calls in each repeat
    minimum: float
    median: float
    spread: float  # between the quartiles
    calibrated: float  # median, in passes of the calibration loop
    calibrated_least: float
    calibrated_most: float

    @classmethod
    def of(cls, name: str, unit: str, count: int, samples: Sequence[Sample]) -> Self:
        ns = [sample.ns for sample in samples]
        ratios = [sample.ns / sample.calibration_ns for sample in samples]
        return cls(
            name=name,
            unit=unit,
            count=count,
            minimum=min(ns),
            median=statistics.median(ns),
            spread=_between_quartiles(ns),
            calibrated=statistics.median(ratios),
            calibrated_least=min(ratios),
            calibrated_most=max(ratios),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A figure against an earlier one of the same name."""

    ratio: float  # of the calibrated medians; 1.0 = the same
    clear: bool  # every repeat of the one was above every repeat of the other


@dataclass(frozen=True, slots=True)
class Measured:
    """A run: where it was made, and what it has shown."""

    machine: dict[str, str]
    calibration_ns: float
    figures: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        figures = tuple(Figure(**each) for each in kept["figures"])
        return cls(dict(kept["machine"]), kept["calibration_ns"], figures)


def changes(now: Measured, earlier: Measured) -> dict[str, Change]:
    """Compare what both runs have, by name."""
    known = {figure.name: figure for figure in earlier.figures}
    return {
        figure.name: change(figure, known[figure.name])
        for figure in now.figures
        if figure.name in known
    }


def change(now: Figure, earlier: Figure) -> Change:
    """Compare one figure with an earlier one, each in passes of its own calibration loop."""
    # A difference of two measurements can come out at nothing or below.
    ratio = now.calibrated / earlier.calibrated if earlier.calibrated > 0 else float("nan")
    apart = (
        now.calibrated_least > earlier.calibrated_most
        or now.calibrated_most < earlier.calibrated_least
    )
    return Change(ratio, clear=apart and abs(ratio - 1) > NOTEWORTHY)


def this_machine() -> dict[str, str]:
    """Return what the figures depend on besides the code."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{library: version(library) for library in LIBRARIES},
    }


def _between_quartiles(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first

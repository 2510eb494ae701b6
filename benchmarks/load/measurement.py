"""What one run of one workload gave, and whether it may be believed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

BUSY = 0.8  # of one core: above it a single-threaded process of ours sets the pace
LATE = 0.5  # of what was measured: above it we measured ourselves


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The middle and the slow end of a sample, in microseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Self:
        ordered = sorted(nanoseconds)
        return cls(_at(ordered, 0.5) / 1000, _at(ordered, 0.99) / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Figures of one run. With a `problem` it is void, and the figures are not to be used."""

    units: int  # chunks, or requests
    problem: str = ""
    script_ns: int = 0  # how long the run takes when nobody is late; 0: as fast as it can
    wall_ns: int = 0
    subject_cpu_ns: int = 0
    server_cpu_ns: int = 0
    generator_cpu_ns: int = 0
    generator_waited_ns: int = 0  # for a core
    quantiles: dict[str, Quantiles] = field(default_factory=dict)
    steady_cpu_ns: int = 0  # while all streams were open, and
    steady_units: int = 0  # the chunks that arrived meanwhile
    memory: int = 0  # of the subject while all streams were open

    @property
    def cpu_us(self) -> float:
        """CPU of the subject per chunk or request, opening and closing included."""
        return self.subject_cpu_ns / self.units / 1000

    @property
    def steady_cpu_us(self) -> float:
        """CPU of the subject per chunk while all streams were open."""
        return self.steady_cpu_ns / self.steady_units / 1000

    @property
    def harness_cpu_us(self) -> float:
        """CPU of model server and load generator per unit: our own speed on this machine."""
        return (self.server_cpu_ns + self.generator_cpu_ns) / self.units / 1000

    @property
    def per_second(self) -> float:
        return self.units / self.wall_ns * 1e9

    @property
    def overloaded(self) -> bool:
        """The subject could not keep up with the script: its delays are those of a queue."""
        return bool(self.script_ns) and self.wall_ns > 1.25 * self.script_ns + 250_000_000

    def doubts(self) -> list[str]:
        """Reasons to read the figures of this run with care."""
        found = []
        for name, used in (
            ("load generator", self.generator_cpu_ns),
            ("model server", self.server_cpu_ns),
        ):
            if self.wall_ns and used > BUSY * self.wall_ns:
                share = 100 * used / self.wall_ns
                found.append(f"the {name} was the bottleneck ({share:.0f} % of a core)")
        transit = self.quantiles.get("transit")
        waited = self.generator_waited_ns / self.units / 1000
        if transit and waited > LATE * transit.p50:
            found.append(
                f"the load generator measured itself (it waited {waited:.0f} µs per chunk for a "
                f"core, and chunks took {transit.p50:.0f} µs)"
            )
        if self.overloaded:
            found.append(
                f"the subject did not keep up ({self.wall_ns / 1e9:.1f} s for a script of "
                f"{self.script_ns / 1e9:.1f} s): its delays say nothing, and chunks that pile up "
                "are cheaper than chunks that come one by one"
            )
        if self.script_ns and not self.steady_units:
            found.append("the streams were never all open at once")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        quantiles = {name: Quantiles(**pair) for name, pair in document["quantiles"].items()}
        return cls(**{**document, "quantiles": quantiles})


def _at(ordered: Sequence[int], share: float) -> int:
    """Nearest rank: a value that was really seen."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0

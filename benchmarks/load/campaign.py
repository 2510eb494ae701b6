"""All that one run of the benchmark has seen, as it is kept in a file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from benchmarks.load.measurement import Measurement

CORE_STAGE, GROWTH_STAGE = "core", "growth"
FIRST_CONTROL, LAST_CONTROL = "first control", "last control"

Value = Callable[[Measurement], float]


@dataclass(frozen=True, slots=True)
class Turn:
    """One subject, started afresh, through the workloads of one stage."""

    subject: str
    stage: str
    round: int
    memory_before: int  # after the warm-up
    measurements: dict[str, Measurement]  # by name of workload


@dataclass(slots=True)
class Campaign:
    """Turns, and what is needed to judge them."""

    machine: dict[str, str]
    command: str  # with which it can be repeated
    versions: dict[str, str] = field(default_factory=dict)  # by subject, in the order of the tables
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def by_round(self, subject: str, stage: str, workload: str, value: Value) -> dict[int, float]:
        """One value per round, of those runs that count."""
        return {
            turn.round: value(turn.measurements[workload])
            for turn in self.turns
            if (turn.subject, turn.stage) == (subject, stage)
            and workload in turn.measurements
            and not turn.measurements[workload].problem
        }

    def runs(self) -> Iterator[tuple[Turn, str, Measurement]]:
        for turn in self.turns:
            for workload, measurement in turn.measurements.items():
                yield turn, workload, measurement

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "command": self.command,
            "versions": self.versions,
            "left_out": self.left_out,
            "notes": self.notes,
            "turns": [
                {
                    "subject": turn.subject,
                    "stage": turn.stage,
                    "round": turn.round,
                    "memory_before": turn.memory_before,
                    "measurements": {k: m.to_json() for k, m in turn.measurements.items()},
                }
                for turn in self.turns
            ],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        turns = [
            Turn(
                **{
                    **turn,
                    "measurements": {
                        k: Measurement.from_json(m) for k, m in turn["measurements"].items()
                    },
                }
            )
            for turn in document["turns"]
        ]
        return cls(**{**document, "turns": turns})

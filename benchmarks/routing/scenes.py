"""What is played, who plays it, and what has to come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.load.figures import Figure
from benchmarks.routing.trial import Load, Outcome, Scene

ASKING = Load(clients=256)  # as many as there are places for sequences in the fleet

SCENES = {
    scene.name: scene
    for scene in (
        Scene("shared", "shared", ASKING),
        Scene("unshared", "unshared", ASKING),
        Scene("one system prompt", "one_system", ASKING),
        Scene("small head", "small_head", ASKING),
        # By turns a server of eight gets 1/s: one that is slow can do 1.2/s, so that it bears
        # the first and not the second.
        Scene("one slow, light", "mixed_sizes", Load(rate=8.0), slow=1),
        Scene("one slow, heavy", "mixed_sizes", Load(rate=20.0), slow=1),
    )
}
BASE = "round_robin"
CAST: dict[str, Sequence[str]] = {
    "shared": (BASE, "prefix", "session", "least_load", "p2c", "weighted", "latency"),
    "unshared": (BASE, "prefix", "least_load"),
    "one system prompt": (BASE, "prefix"),
    "small head": (BASE, "prefix"),
    "one slow, light": (BASE, "least_load"),
    "one slow, heavy": (BASE, "least_load", "p2c", "latency"),
}

Rounds = Mapping[str, Sequence[Outcome]]
"""The outcomes of a scene by policy; those of the same round stand at the same place."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a policy has to be, beside the servers taking turns in the same round."""

    scene: str
    policy: str
    figure: str  # of an outcome
    least: float = 0.0
    most: float = field(default=float("inf"))

    def reached(self, rounds: Rounds) -> Figure | None:
        """Return the ratio, round by round; None when it was not played."""
        pairs = zip(rounds.get(self.policy, ()), rounds.get(BASE, ()), strict=False)
        return Figure.of(getattr(a, self.figure) / getattr(b, self.figure) for a, b in pairs)

    def holds(self, figure: Figure) -> bool:
        return self.least <= figure.median < self.most


TARGETS = (
    Target("shared", "prefix", "per_second", least=2.0),
    Target("unshared", "prefix", "per_second", least=0.9),
    Target("one system prompt", "prefix", "per_second", least=0.9),
    Target("small head", "prefix", "per_second", least=0.9),
    Target("one slow, light", "least_load", "first_token_p99", most=1.0),
    Target("one slow, heavy", "least_load", "first_token_p99", most=1.0),
)

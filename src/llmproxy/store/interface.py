"""What every store can do, whichever it is.

Two things are kept. *Records* are small documents under a name: issued keys, nonces, the
audit log. *Meters* are numbers that many requests change at once: what is taken from a limit,
what is held of it, what is spent of a budget. A meter is read and changed in one step, all
meters of a request together or none, by the clock of the store and not by ours.

Whatever cannot be done raises `Unavailable`; what becomes of the request then is decided by
whoever asked. A caller who is cancelled leaves nothing half done: what was taken for it is
given back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llmproxy.records import Window

if TYPE_CHECKING:
    from llmproxy.store.counters import Counters


class Unavailable(Exception):
    """The store cannot be asked now. Carries no address and no command."""


class Kind(Enum):
    """How a meter counts."""

    RATE = "rate"  # drains evenly: `limit` per `period` (GCRA, told as a leaking bucket)
    HELD = "held"  # counts what is held right now
    SPENT = "spent"  # counts up within a calendar window, held amounts included


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit or budget of one subject."""

    name: str  # made by `meter_name`, so that no two subjects can share one
    kind: Kind
    limit: float
    period: float = 0.0  # seconds, for RATE
    window: Window = "total"  # for SPENT
    hard: bool = True  # False: is counted and never refuses
    # A RATE whose amounts are guesses until they are settled: with an owner, like HELD and SPENT.
    provisional: bool = False
    # What a RATE drains in a second, and how long one of it takes: asked for several times by
    # every request.
    pace: float = field(init=False, repr=False, compare=False, default=0.0)
    each: float = field(init=False, repr=False, compare=False, default=inf)

    def __post_init__(self) -> None:
        if self.limit > 0.0 and self.period > 0.0:
            object.__setattr__(self, "pace", self.limit / self.period)
            object.__setattr__(self, "each", self.period / self.limit)


class Reading(NamedTuple):  # made several times a request: half of what a frozen dataclass costs
    """A meter as it stands after it was asked."""

    left: float  # what could still be had now; negative when more was used than allowed
    resets_in: float  # seconds until all of it can be had again; 0 for HELD
    # Seconds until what was refused would fit: inf = it never will, 0 = nobody can tell, because
    # it is somebody else who has to give something back.
    retry_in: float = 0.0


class Grant(NamedTuple):
    """What became of a wish to take from several meters at once."""

    granted: bool
    readings: tuple[Reading, ...]  # one per meter, in the order they were named
    owner: str  # under whose lease it is held; goes back with `settle`
    refused: tuple[int, ...] = ()  # which meters were in the way


class Meters(Protocol):
    """Numbers that many change at once."""

    @property
    def available(self) -> bool:
        """Whether it answered when it was last asked; as long as it does not, it goes on trying."""

    async def take(self, wanted: Sequence[tuple[Meter, float]]) -> Grant:
        """Take all of these amounts, or nothing at all; name no meter twice.

        What is taken of HELD and SPENT, and of a RATE that is provisional, is held under the lease
        of this process until it is settled: when the process dies, it comes back by itself, as if
        nothing of it had been used. What is taken of any other RATE is spent.
        """

    async def settle(self, taken: Sequence[tuple[Meter, float, float]], owner: str) -> None:
        """Replace what was taken by what it really was: (meter, taken, actual).

        Never refuses, never goes below zero, never waits and never fails: what cannot be
        delivered now is delivered, once, when the store answers again: as it was, however much of
        it would have drained meanwhile. So whoever knows that it is not `available` rather waits.
        For HELD the actual amount is 0. What the owner no longer holds has come back already:
        then only the actual amount is charged.
        """

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        """Return how these meters stand."""


class Immediate(Protocol):
    """Meters of this very process: the same, without letting anybody else run."""

    def take_now(self, wanted: Sequence[tuple[Meter, float]]) -> Grant:
        """Do what `Meters.take` does."""

    def settle_now(self, taken: Sequence[tuple[Meter, float, float]], owner: str) -> None:
        """Do what `Meters.settle` does."""

    steady: Callable[[], float]
    """The clock of its rates, which never steps back."""

    def counters(self) -> "Counters":
        """Return the meters themselves, for whoever will always ask the same ones."""


class Records(Protocol):
    """Small documents under names."""

    async def get(self, name: str) -> bytes | None:
        """Return what is kept under a name."""

    async def put(self, name: str, value: bytes, *, within: float | None = None) -> None:
        """Keep something, for some seconds or until it is deleted."""

    async def add(self, name: str, value: bytes, *, within: float | None = None) -> bool:
        """Keep something unless there is something; tell whether there was nothing."""

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        """Put `new` in the place of exactly `old`; tell whether that was still there.

        It is kept as long as the old one would have been.
        """

    async def delete(self, name: str) -> bool:
        """Forget a name; tell whether it was there."""

    async def names(self, prefix: str) -> list[str]:
        """Return the names that begin like this, in order.

        Costs a walk through all that is kept: for lists that people look at, not for every
        request.
        """

    async def append(self, name: str, entry: bytes, *, keep: int) -> None:
        """Add an entry to a list, of which the last `keep` are kept."""

    async def entries(self, name: str, *, last: int) -> list[bytes]:
        """Return the last entries of a list, oldest first."""


class Store(Records, Meters, Protocol):
    """One place for both."""

    shared: bool  # whether other processes see the same

    @property
    def events(self) -> Mapping[str, int]:
        """What has happened, and how often.

        "unavailable": it stopped answering. "garbage": a foreign value was deleted under a name of
        ours. "reloaded": the server did not know the script. "lost": a settlement was given up.
        """

    async def start(self) -> None:
        """Begin to renew the lease; connections are made when they are needed."""

    async def aclose(self) -> None:
        """Write what is still to be written, give back what is held, let go of everything."""


def meter_name(*parts: str) -> str:
    """Return the name of a meter; different parts never make the same name."""
    return ":".join(_plain(part) for part in parts)


def _plain(part: str) -> str:
    return part.translate(_ESCAPES)


# What has a meaning in a name or a hash tag, the escape itself, and what UTF-8 cannot write.
_ESCAPES = {
    **{ord(char): f"%{ord(char):02X}" for char in "%:{}*?[]\\"},
    **{code: f"%u{code:X}" for code in range(0xD800, 0xE000)},
}

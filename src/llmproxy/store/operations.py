"""What a store can be asked to do, as values that wait for their turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llmproxy.store.counters import Taken, Wanted
from llmproxy.store.interface import Grant, Meter, Reading

R = TypeVar("R")
Result = Any  # what an operation is answered with; `Operation` says which has which


class Operation(Generic[R]):
    """Something to do, which is answered with an R."""

    __slots__ = ()


@dataclass(slots=True)
class Take(Operation[Grant]):
    """See `Meters.take`."""

    wanted: Wanted


@dataclass(slots=True)
class Settle(Operation[None]):
    """See `Meters.settle`."""

    taken: Taken
    owner: str


@dataclass(slots=True)
class Read(Operation[tuple[Reading, ...]]):
    """See `Meters.read`."""

    meters: Sequence[Meter]


@dataclass(slots=True)
class Get(Operation[bytes | None]):
    """See `Records.get`."""

    name: str


@dataclass(slots=True)
class Put(Operation[bool]):
    """See `Records.put`, and `Records.add` when it is `new`."""

    name: str
    value: bytes
    within: float | None
    new: bool


@dataclass(slots=True)
class Replace(Operation[bool]):
    """See `Records.replace`."""

    name: str
    old: bytes
    value: bytes


@dataclass(slots=True)
class Delete(Operation[bool]):
    """See `Records.delete`."""

    name: str


@dataclass(slots=True)
class Names(Operation[tuple[str, list[str]]]):
    """Some of the names: where to go on from, and "" when there are no more."""

    prefix: str
    cursor: str


@dataclass(slots=True)
class Append(Operation[None]):
    """See `Records.append`."""

    name: str
    entry: bytes
    keep: int


@dataclass(slots=True)
class Entries(Operation[list[bytes]]):
    """See `Records.entries`."""

    name: str
    last: int


@dataclass(slots=True)
class Leave(Operation[None]):
    """Give back all that this process holds. Nothing follows it."""


@dataclass(slots=True)
class Nothing(Operation[None]):
    """What an operation turns into when nobody waits for it any more."""


def given_back(wanted: Wanted, grant: Grant) -> Settle:
    """Return what undoes a grant that nobody received."""
    return Settle([(meter, amount, 0.0) for meter, amount in wanted], grant.owner)


def written(name: str) -> bytes:
    """Return any text as bytes, different texts as different bytes."""
    return name.encode("utf-8", "surrogatepass")


def spelt(name: bytes) -> str:
    """Return the text again."""
    return name.decode("utf-8", "surrogatepass")

"""Which of several servers gets a request. Pure: what is known goes in, a choice comes out.

Rule 1: every policy gets only servers that may be asked, at least one, and returns one of them.
Rule 2: what is not known of a server counts as nothing, so that it is tried.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

POLICIES = ("least_load", "round_robin", "weighted", "p2c", "latency", "prefix", "session")

FULL_KV = 0.9  # share of the KV cache in use from which a server counts as loaded
BOUND = 1.25  # times its fair part that a server may have before hashing passes it over


class Load(Protocol):
    """A server as a policy sees it."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def weight(self) -> float:
        """Its share of the work, slow start included."""

    @property
    def inflight(self) -> int:
        """Our own requests that are not finished."""

    @property
    def others(self) -> int:
        """Requests in the engine, running or waiting, that are not ours, as it last said."""

    @property
    def waiting(self) -> int:
        """Requests in the engine's own queue, as it last said."""

    @property
    def kv_use(self) -> float:
        """Share of its KV cache in use, 0 to 1."""

    @property
    def burden(self) -> float:
        """How busy it is for its size: `burden_of` tells how that is found."""

    @property
    def latency(self) -> float:
        """Seconds to a first token, as of late; 0 when it was never asked."""


S = TypeVar("S", bound=Load)
Draw = Callable[[], float]  # from 0 up to but not 1


def busy_with(server: Load) -> int:
    """Return how much a server has to do.

    What waits in the engine weighs as much again as what is in flight: it stands before us.
    Ours are counted as they come and go; only those of other processes are as old as what the
    engine has said, or a burst of ours would all follow the same old figure.
    """
    return server.inflight + server.others + server.waiting


def burden_of(server: Load) -> float:
    """Return how busy a server is for its size."""
    busy: float = busy_with(server)
    if server.kv_use > FULL_KV:
        busy = busy * 2 + 1  # the next request will make it swap or wait
    return (busy + 1) / max(server.weight, 1e-6)


def least_load(servers: Sequence[S], draw: Draw = random.random) -> S:
    """Return the less busy of two taken at random: nearly the best, and no stampede on it."""
    count = len(servers)
    if count == 1:
        return servers[0]
    # `two_of` in line: this runs for nearly every request.
    drawn = draw() * count
    one = int(drawn)
    other = int((drawn - one) * (count - 1))
    first, second = servers[one], servers[other + (other >= one)]
    return first if first.burden <= second.burden else second


def p2c(servers: Sequence[S], draw: Draw = random.random) -> S:
    """Return the one of two taken at random with fewer of our own requests in flight."""
    if len(servers) == 1:
        return servers[0]
    first, second = two_of(servers, draw)
    return first if first.inflight * second.weight <= second.inflight * first.weight else second


def weighted(servers: Sequence[S], draw: Draw = random.random) -> S:
    """Return one at random, each as often as its weight says."""
    left = draw() * sum(server.weight for server in servers)
    for server in servers:
        left -= server.weight
        if left < 0:
            return server
    return servers[-1]


def latency(servers: Sequence[S], draw: Draw = random.random) -> S:
    """Return the one of two where a first token comes soonest, given what is in flight there."""
    if len(servers) == 1:
        return servers[0]
    first, second = two_of(servers, draw)
    return first if _expected(first) <= _expected(second) else second


def _expected(server: Load) -> float:
    return server.latency * (server.inflight + 1) / max(server.weight, 1e-6)


def two_of(servers: Sequence[S], draw: Draw) -> tuple[S, S]:
    """Return two different servers at random."""
    count = len(servers)
    drawn = draw() * count
    first = int(drawn)
    second = int((drawn - first) * (count - 1))  # what is behind the comma is as much by chance
    return servers[first], servers[second + (second >= first)]


def bounded_hash(servers: Sequence[S], key: bytes) -> S:
    """Return the server that a key belongs to, or the next one while that has too much to do.

    Rendezvous hashing: a server that comes or goes moves only the keys that are its own.
    """
    ranked = sorted(servers, key=lambda server: _score(server, key), reverse=True)
    most = most_for(servers)
    for server in ranked:
        if busy_with(server) < most * server.weight:
            return server
    return ranked[0]


def most_for(servers: Sequence[Load]) -> float:
    """Return how much one server may have per unit of weight before it is passed over."""
    busy = sum(map(busy_with, servers)) + 1
    weight = sum(server.weight for server in servers) or 1.0
    return max(BOUND * busy / weight, 1.0 / min(server.weight for server in servers))


def highest_score(servers: Sequence[S], key: bytes) -> S:
    """Return the server that a key belongs to, whatever it has to do."""
    return max(servers, key=lambda server: _score(server, key))


def _score(server: Load, key: bytes) -> float:
    digest = hashlib.blake2b(key, digest_size=8, key=server.name.encode()[:64]).digest()
    drawn = (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
    # The weighted form: a server of twice the weight wins twice as often.
    return -server.weight / math.log(drawn)


class RoundRobin:
    """One after the other, each as often in a row of turns as its weight says (smooth)."""

    def __init__(self) -> None:
        self._current: dict[str, float] = {}

    def __call__(self, servers: Sequence[S]) -> S:
        total = 0.0
        current = self._current
        if len(current) > 4 * len(servers) + 64:
            current.clear()  # names of servers that are long gone
        best = servers[0]
        for server in servers:
            total += server.weight
            current[server.name] = current.get(server.name, 0.0) + server.weight
            if current[server.name] > current[best.name]:
                best = server
        current[best.name] -= total
        return best

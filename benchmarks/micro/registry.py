"""The benchmarks by name, and what a benchmark is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Run = Callable[[int], Awaitable[int]]
"""Does something so many times, and returns how often it came out at the far end."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured."""

    run: Run
    without: Run | None = None
    """The same but for what is measured: its cost is taken off."""


Preparation = AsyncIterator[Work]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One thing that is measured."""

    name: str  # place.what
    unit: str  # of what the figure is the cost
    prepare: Callable[[], AbstractAsyncContextManager[Work]]


class NoBenchmarkError(Exception):
    """No benchmark has such a name."""


_registered: dict[str, Benchmark] = {}


def benchmark(name: str, unit: str) -> Callable[[Callable[[], Preparation]], Benchmark]:
    """Register a function that prepares, yields its work once, and clears up."""

    def register(prepare: Callable[[], Preparation]) -> Benchmark:
        assert name not in _registered, f"two benchmarks are called {name}"
        made = Benchmark(name, unit, asynccontextmanager(prepare))
        _registered[name] = made
        return made

    return register


def matching(part: str = "") -> list[Benchmark]:
    """Return the benchmarks with `part` in their names, outermost place first."""
    from benchmarks.micro.subjects import PLACES  # registers them all

    order = [place.__name__.rpartition(".")[2] for place in PLACES]
    found = [each for name, each in _registered.items() if part in name]
    if not found:
        raise NoBenchmarkError(f"no benchmark has {part!r} in its name")
    return sorted(found, key=lambda each: order.index(each.name.partition(".")[0]))


def calls(
    right: Callable[[R], bool], function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> Work:
    """Measure one call of a function, the loop around it included (about 20 ns)."""

    async def run(count: int) -> int:
        assert count > 0
        for _ in repeat(None, count):
            result = function(*args, **kwargs)
        return count if right(result) else 0

    return Work(run)

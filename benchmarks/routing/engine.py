"""One modelled engine: a queue, one prefill at a time, and so many sequences that are decoded.

Pure, and with a clock of its own: whoever drives it says what time it is, and what was due
meanwhile happens at the times at which it was due. So it does not matter to the model that a
timer of a busy machine comes late.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from typing import NamedTuple

from benchmarks.routing.kv_cache import BLOCK, KvCache, keys_of, tokens_in


@dataclass(frozen=True, slots=True)
class Build:
    """What an engine can do, in seconds of the model."""

    prefill: float = 10_000.0  # tokens per second, of one prompt at a time
    decode: float = 50.0  # tokens per second, of each sequence
    sequences: int = 32  # that are decoded at once
    cache: int = 96_000  # tokens

    def slower(self, times: float) -> "Build":
        """Return the same engine on slower hardware."""
        return Build(self.prefill / times, self.decode / times, self.sequences, self.cache)


class Step(Enum):
    """What becomes of a sequence."""

    FIRST_TOKEN = auto()
    END = auto()


class Event(NamedTuple):
    """Something that happened in an engine."""

    at: float
    step: Step
    sequence: "Sequence"


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and its answer."""

    prompt: bytes
    answer: bytes
    keys: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = keys_of(self.prompt + self.answer)


@dataclass(slots=True)
class Work:
    """What an engine has done so far."""

    prompts: int = 0
    tokens: int = 0  # of these prompts
    cached: int = 0  # of these tokens
    busy: float = 0.0  # seconds of prefill
    answered: int = 0


class Engine:
    """Takes sequences, and says what became of them by a certain time."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.work = Work()
        self._cache = KvCache(build.cache // BLOCK)
        self._waiting: deque[Sequence] = deque()
        self._prefilled: tuple[float, Sequence] | None = None
        self._ends: list[tuple[float, int, Sequence]] = []
        self._number = count()

    @property
    def running(self) -> int:
        return len(self._ends) + (self._prefilled is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_use(self) -> float:
        return self._cache.use

    def ask(self, sequence: Sequence, now: float) -> None:
        """Take a sequence. What was due before has to be asked for first, by `until`."""
        self._waiting.append(sequence)
        self._start(now)

    def due(self) -> float | None:
        """Return when something happens next; None when nothing is to be done."""
        times = [self._prefilled[0]] if self._prefilled is not None else []
        times += [self._ends[0][0]] if self._ends else []
        return min(times) if times else None

    def until(self, now: float) -> list[Event]:
        """Return what has happened since the last call."""
        events: list[Event] = []
        while (at := self.due()) is not None and at <= now:
            if self._prefilled is not None and self._prefilled[0] == at:
                sequence, self._prefilled = self._prefilled[1], None
                lasts = tokens_in(sequence.answer) / self.build.decode
                heapq.heappush(self._ends, (at + lasts, next(self._number), sequence))
                events.append(Event(at, Step.FIRST_TOKEN, sequence))
            else:
                sequence = heapq.heappop(self._ends)[2]
                self._cache.give_back(sequence.keys)
                self.work.answered += 1
                events.append(Event(at, Step.END, sequence))
            self._start(at)
        return events

    def _start(self, now: float) -> None:
        """Begin the next prefill if nothing stands against it."""
        if self._prefilled is not None or not self._waiting:
            return
        if len(self._ends) >= self.build.sequences:
            return
        sequence = self._waiting[0]
        there = self._cache.take(sequence.keys)
        if there is None:
            return  # no room; the next end makes some
        self._waiting.popleft()
        tokens = tokens_in(sequence.prompt)
        cached = min(there * BLOCK, tokens - 1)  # the last token is read in any case
        lasts = (tokens - cached) / self.build.prefill
        self.work.prompts += 1
        self.work.tokens += tokens
        self.work.cached += cached
        self.work.busy += lasts
        self._prefilled = (now + lasts, sequence)

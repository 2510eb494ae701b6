"""How many requests may be at work, and who waits for how long when there are more.

Strict classes first: as long as somebody of a higher class waits, nobody of a lower one is
dispatched. A lower class can starve; its requests end in `overloaded` after the queue's time.
Inside a class see `fairness`.

How long a wait will be is a guess. It is told to whoever is refused, and turns away only those
whose own time would be over before; for the others the queue's time ends the wait.

Invariant: while somebody waits, every slot is taken. A slot is given back in exactly one way,
`leave`, and what one gives back the next one has at once.
"""

import math
from collections.abc import Callable

from llmproxy import clock
from llmproxy.errors import DeadlineTooShort, Overloaded, ProxyError
from llmproxy.rate_limit.fairness import RUNNING, FairQueue, Place, Share, State
from llmproxy.rate_limit.pace import Pace

LOWEST, HIGHEST = -10, 10  # classes; each keeps books of its own, so there must be few
SOONEST, LATEST = 1, 60  # seconds in a Retry-After

OVER = State.OVER


class Admission:
    """The slots, and the queue in front of them."""

    def __init__(
        self,
        *,
        max_inflight: int,
        queue_size: int,
        queue_timeout: float,
        now: Callable[[], float] = clock.now,
    ) -> None:
        self.max_inflight = max_inflight
        self.queue_size = queue_size
        self.queue_timeout = queue_timeout or math.inf  # 0 = for ever, as with every clock
        self.waiting = 0
        self._now = now
        self._pace = Pace()
        self._running: dict[Place, float] = {}  # since when; the oldest first
        self._classes: dict[int, FairQueue] = {}
        self._order: list[FairQueue] = []  # the highest class first

    @property
    def running(self) -> int:
        """How many have a slot."""
        return len(self._running)

    def resize(self, max_inflight: int) -> None:
        """Have more slots or fewer; whoever has one keeps it."""
        self.max_inflight = max_inflight
        if self.waiting:
            self._dispatch()

    def take(self, key: str, weight: float, level: int) -> Place | None:
        """Take a slot, if there is one. A higher `level` goes first."""
        running = self._running
        if len(running) >= self.max_inflight:
            return None
        queue = self._classes.get(level)
        if queue is None:
            queue = self._class(level)
        place = queue.start(key, weight)
        running[place] = now = self._now()
        if len(running) == self.max_inflight:
            self._pace.full(now)
        return place

    def wait(
        self,
        key: str,
        weight: float,
        level: int,
        *,
        deadline: float,
        wake: Callable[[], None],
    ) -> Place:
        """Wait in the queue; `wake` is called once the place has another state.

        To be called when `take` had nothing. Raises what can be known now: that the queue is
        full, or that the deadline would pass in it.
        """
        queue = self._class(level)
        share = queue.share(key, weight)
        now = self._now()
        ahead = self._ahead(queue, share)
        expected = self._pace.wait(ahead, now)
        if now + expected >= deadline:
            raise _too_short(self._told(expected, now))
        if self.waiting >= self.queue_size and not self._make_room(queue, share):
            raise _full(self._told(expected, now))
        place = queue.join(share)
        place.wake = wake
        place.deadline = deadline
        place.until = min(deadline, now + self.queue_timeout)
        self.waiting += 1
        return place

    def leave(self, place: Place, served: float | None = None) -> None:
        """Give back what the request has, a slot or a place in the queue. Twice is once.

        `served` are its tokens; without them the key stays charged what is usual.
        """
        state, place.state = place.state, OVER
        if state is RUNNING:
            place.queue.settle(place, served)
            if len(self._running) == self.max_inflight:
                self._pace.freed(self._now())
            del self._running[place]
            if self.waiting:
                self._dispatch()
        elif state is State.WAITING:
            place.queue.remove(place)
            self.waiting -= 1

    def refusal(self, place: Place) -> ProxyError:
        """Let somebody go who has no slot, and return what to tell them."""
        displaced = place.state is State.DISPLACED
        self.leave(place)
        now = self._now()
        again = self._told(self._pace.wait(self._ahead(place.queue, place.share), now), now)
        if displaced:
            return _full(again)
        if place.until == place.deadline:
            return _too_short(again)
        return Overloaded(
            f"No slot became free within {self.queue_timeout:g} s.", retry_after=seconds(again)
        )

    def _dispatch(self) -> None:
        now = self._now()
        while self.waiting and len(self._running) < self.max_inflight:
            highest = next(each for each in self._order if each.size)
            place = highest.next()
            self.waiting -= 1
            self._running[place] = now
            place.wake()

    def _make_room(self, queue: FairQueue, share: Share) -> bool:
        """Take a place from the lowest class below, or from a key with more than its part.

        One key with very many requests must not keep the others out of the queue.
        """
        lowest = next((each for each in reversed(self._order) if each.size), queue)
        if lowest.level < queue.level:
            self._displace(lowest.last_of_the_longest())
        elif queue.has_room_for(share):
            self._displace(queue.last_of_the_longest())
        else:
            return False
        return True

    def _displace(self, place: Place) -> None:
        place.queue.remove(place)
        self.waiting -= 1
        place.state = State.DISPLACED
        place.wake()

    def _told(self, expected: float, now: float) -> float:
        """Return after how long to come again.

        While nothing is known of the pace, it is as long as the oldest request has been at work:
        whatever takes that long may well take as long again.
        """
        if self._pace.known or not self._running:
            return expected
        return max(expected, now - next(iter(self._running.values())))

    def _ahead(self, queue: FairQueue, share: Share) -> int:
        above = sum(each.size for each in self._order if each.level > queue.level)
        return above + queue.ahead(share)

    def _class(self, level: int) -> FairQueue:
        level = min(max(level, LOWEST), HIGHEST)
        queue = self._classes.get(level)
        if queue is None:
            queue = self._classes[level] = FairQueue(level)
            self._order = sorted(self._classes.values(), key=lambda each: -each.level)
        return queue


def part_of(total: int, workers: int, index: int) -> int:
    """Return the part that one of several workers has of a number for all of them.

    The parts add up to the number; where there are more workers than that, each has 1. Workers
    do not lend to each other, so one may refuse what another would have room for: whoever needs
    every place runs one worker.
    """
    if total == 0:
        return 0  # no limit is none for anybody
    return max(1, total // workers + (index % workers < total % workers))


def seconds(expected: float) -> int:
    """Return what a Retry-After says of an expected wait."""
    return min(max(math.ceil(expected), SOONEST), LATEST)


def _full(expected: float) -> Overloaded:
    return Overloaded(
        "Too many requests are waiting already. Try again later.", retry_after=seconds(expected)
    )


def _too_short(expected: float) -> DeadlineTooShort:
    return DeadlineTooShort(
        "The time set for the request is over before it would be its turn.",
        retry_after=seconds(expected),
    )

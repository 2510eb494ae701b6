"""Who is next among those that wait in one class: fair between keys, by tokens and weight.

Virtual token counters: the counter of a key rises by the tokens it is served, divided by its
weight. The lowest counter is next; inside a key, who came first. At the start of a request the
key is charged what its requests have taken lately, at the end the difference to the truth. What
a request says of its own size plays no part, so nobody gains by saying little or much.

A key that comes back starts no lower than the lowest of those that wait, or than where the last
one was dispatched. What it has not used went to the others and is not owed to it; nor do they
owe it anything.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum

START = 500.0  # tokens that a request is thought to take while nobody knows better
LEARNING = 0.1  # the part that the last request has in what is usual
LEAST_WEIGHT = 0.001
MOST_RESTING = 2048  # keys that are remembered although nothing of theirs runs or waits
SLACK = 64  # entries that the heap may have too many before it is put in order


class State(Enum):
    """What has become of a request."""

    WAITING = "waiting"
    RUNNING = "running"
    DISPLACED = "displaced"  # its place in the queue went to somebody who had fewer
    OVER = "over"


RUNNING = State.RUNNING  # looking it up in the class costs as much as a slot


class Share:
    """What one key has had in one class."""

    __slots__ = ("counter", "entry", "running", "usual", "waiting", "weight")

    def __init__(self, usual: float) -> None:
        self.counter = 0.0
        self.usual = usual  # tokens that its requests have taken lately
        self.weight = 1.0
        self.running = 0
        self.entry = 0  # the number of its valid entry in the heap; 0 = nobody of it waits
        self.waiting: OrderedDict[Place, None] = OrderedDict()


class Place:
    """One request, from its coming to its end. The last three are for those that wait."""

    __slots__ = ("charged", "deadline", "queue", "share", "state", "until", "wake")

    charged: float
    until: float  # when it stops waiting, ...
    deadline: float  # ... and when its caller does
    wake: Callable[[], None]

    def __init__(self, queue: "FairQueue", share: Share, state: State) -> None:
        self.queue = queue
        self.share = share
        self.state = state


class FairQueue:
    """All that wait in one class, and what each key has had."""

    def __init__(self, level: int = 0) -> None:
        self.level = level  # of the class; higher goes first
        self.size = 0  # requests that wait
        self.weights = 0.0  # of the keys of which one waits
        self._now = 0.0  # the counter of the one that was dispatched last; never goes down
        self._usual = START  # tokens per request, over all keys
        self._shares: dict[str, Share] = {}
        self._sweep_at = MOST_RESTING
        self._heap: list[tuple[float, int, Share]] = []  # an entry is valid if its number is
        self._entries = 0
        self._keys = 0  # of which one waits

    @property
    def remembered(self) -> int:
        """How much is remembered, of all kinds: what must not grow."""
        return len(self._shares) + len(self._heap) + self.size

    def share(self, key: str, weight: float) -> Share:
        """Return the share of a key."""
        share = self._shares.get(key)
        if share is None:
            if len(self._shares) >= self._sweep_at:
                self._sweep()
            share = self._shares[key] = Share(self._usual)
        if not share.entry:  # else it would not be the weight that was added up
            share.weight = weight if weight > LEAST_WEIGHT else LEAST_WEIGHT
        return share

    def start(self, key: str, weight: float) -> Place:
        """Dispatch a request at once."""
        share = self._shares.get(key)
        if share is None or share.weight != weight:
            share = self.share(key, weight)
        place = Place(self, share, RUNNING)
        # Nobody waits, so there is nobody to be level with; that is seen to when it waits itself.
        if share.counter > self._now:
            self._now = share.counter
        self._charge(place, share)
        return place

    def join(self, share: Share) -> Place:
        """Let a request wait."""
        place = Place(self, share, State.WAITING)
        if not share.entry:
            share.counter = max(share.counter, self._lowest())
            self._keys += 1
            self.weights += share.weight
            self._enter(share)
        share.waiting[place] = None
        self.size += 1
        return place

    def remove(self, place: Place) -> None:
        """Let somebody go who waits."""
        share = place.share
        del share.waiting[place]
        self.size -= 1
        if not share.waiting:
            self._rest(share)

    def next(self) -> Place:
        """Dispatch the one whose turn it is; somebody must wait."""
        self._lowest()  # leaves a valid entry on top
        _, _, share = heapq.heappop(self._heap)
        place, _ = share.waiting.popitem(last=False)
        self.size -= 1
        self._now = max(self._now, share.counter)
        place.state = State.RUNNING
        self._charge(place, share)
        if share.waiting:
            self._enter(share)
        else:
            self._rest(share)
        return place

    def settle(self, place: Place, served: float | None) -> None:
        """Correct what a request that has ended was charged; None = nobody knows better."""
        share = place.share
        share.running -= 1
        if served is None:
            return
        share.usual += (served - share.usual) * LEARNING
        self._usual += (served - self._usual) * LEARNING
        share.counter += (served - place.charged) / share.weight
        if share.entry:
            self._enter(share)

    def ahead(self, share: Share) -> int:
        """Return about how many are served before one that the key would add now."""
        turns = (len(share.waiting) + 1) * self._weights_with(share) / share.weight
        return min(self.size, math.ceil(turns) - 1)

    def has_room_for(self, share: Share) -> bool:
        """Tell whether the key has less than its part of the places that are taken.

        Then some other key has more than its own.
        """
        wanted = (len(share.waiting) + 1) * self._weights_with(share)
        return wanted <= self.size * share.weight

    def last_of_the_longest(self) -> Place:
        """Return the youngest request of the key that has most waiting for its weight."""
        longest = max(
            (share for _, number, share in self._heap if number == share.entry),
            key=lambda share: len(share.waiting) / share.weight,
        )
        return next(reversed(longest.waiting))

    def _weights_with(self, share: Share) -> float:
        return self.weights if share.entry else self.weights + share.weight

    def _charge(self, place: Place, share: Share) -> None:
        place.charged = usual = share.usual
        share.counter += usual / share.weight
        share.running += 1

    def _lowest(self) -> float:
        heap = self._heap
        while heap:
            counter, number, share = heap[0]
            if number == share.entry:
                return counter
            heapq.heappop(heap)
        return self._now

    def _enter(self, share: Share) -> None:
        """Write down where a key stands now; what was written before is no longer valid."""
        self._entries += 1
        share.entry = self._entries
        heapq.heappush(self._heap, (share.counter, share.entry, share))
        if len(self._heap) > 2 * self._keys + SLACK:
            self._heap = [each for each in self._heap if each[1] == each[2].entry]
            heapq.heapify(self._heap)

    def _rest(self, share: Share) -> None:
        share.entry = 0
        self._keys -= 1
        self.weights = self.weights - share.weight if self._keys else 0.0

    def _sweep(self) -> None:
        """Forget the keys that would start where new ones do, and any that are too many.

        Of those the ones with the lowest counters: they gain least by it.
        """
        busy = {key: each for key, each in self._shares.items() if each.entry or each.running}
        resting = [
            (key, each)
            for key, each in self._shares.items()
            if key not in busy and each.counter > self._now
        ]
        resting.sort(key=lambda pair: pair[1].counter, reverse=True)
        self._shares = busy | dict(resting[: MOST_RESTING // 2])
        self._sweep_at = len(self._shares) + MOST_RESTING // 2

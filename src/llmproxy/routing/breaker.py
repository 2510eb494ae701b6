"""Keeps requests away from a server that fails, and lets one at a time find out if it still does.

pybreaker lends the names of the states and its listeners, so that whoever knows it knows ours.
Its own counting is not used: it counts failures in a row and by the calendar, takes a client
who hangs up for a failure, and lets every waiting request through at once when half open.

Rule 1: it opens by the share of failures among the calls of a short window, or at once when
        nobody answers the door several times in a row.
Rule 2: what says nothing about the server (a client who left, a 4xx, a full queue) counts for
        nothing.
Rule 3: half open means exactly one call.
"""

from collections.abc import Callable

from pybreaker import STATE_CLOSED, STATE_HALF_OPEN, STATE_OPEN

from llmproxy.routing.changes import Changes

WINDOW = 10.0  # seconds of calls that are judged
LEAST = 20  # calls before a share means anything
SHARE = 0.5  # of them that may fail
REFUSED_IN_A_ROW = 5  # connections: a server that is down need not be asked 20 times
FIRST_REST = 5.0  # seconds before it is tried again; doubled each time that fails
LONGEST_REST = 60.0
BUCKETS = 10  # parts of the window that are forgotten one by one
PART = WINDOW / BUCKETS  # seconds

Listener = Callable[[str, str], None]  # from one state to another


class Breaker:
    """The state of one server. Nothing here waits: states change when somebody looks."""

    __slots__ = (
        "_bucket_ends",
        "_buckets",
        "_changed",
        "_now",
        "_opened_at",
        "_probing",
        "_refused",
        "_rest",
        "_state",
        "closed",
    )

    def __init__(self, now: Callable[[], float], changed: Listener | None = None) -> None:
        self._now = now
        self._changed = changed
        self._state = STATE_CLOSED
        self.closed = True  # nothing is kept from it
        self._buckets: list[list[int]] = []  # which part of time, calls, failures
        self._bucket_ends = 0.0  # when the next part begins
        self._refused = 0  # connections in a row
        self._opened_at = 0.0
        self._rest = FIRST_REST
        self._probing = False

    @property
    def state(self) -> str:
        """closed, open or half-open."""
        if self._state == STATE_OPEN and self._now() - self._opened_at >= self._rest:
            return STATE_HALF_OPEN
        return self._state

    @property
    def has_failed(self) -> bool:
        """Whether a call of the last window failed, or it has not yet been seen to be well."""
        if self._state != STATE_CLOSED:
            return True
        oldest = int(self._now() / PART) - BUCKETS
        return any(failures for part, _, failures in self._buckets if part > oldest)

    def lets_through(self) -> bool:
        """Tell whether a call may be made now. Does not reserve it: see `begin`."""
        if self._state == STATE_CLOSED:
            return True
        return self.state == STATE_HALF_OPEN and not self._probing

    def opens_in(self) -> float:
        """Return the seconds until the next call may be made."""
        if self._state == STATE_CLOSED:
            return 0.0
        return max(0.0, self._opened_at + self._rest - self._now())

    def begin(self) -> bool:
        """Note a call; True when it is the one that finds out."""
        if self._state == STATE_CLOSED:
            return False
        self._become(STATE_HALF_OPEN)
        self._probing = True
        return True

    def succeeded(self, *, probe: bool) -> None:
        """Note a call that was answered."""
        self._refused = 0
        if self.closed:
            if self._now() >= self._bucket_ends:
                self._begin_bucket()
            self._buckets[-1][1] += 1
        elif probe:
            self.close()

    def failed(self, *, probe: bool, refused: bool = False) -> None:
        """Note a call that the server failed; `refused` when no connection came about."""
        if probe:
            self._probing = False
            self._rest = min(self._rest * 2, LONGEST_REST)
            self._open()
        elif self._state == STATE_CLOSED:
            self._refused = self._refused + 1 if refused else 0
            calls, failures = self._count_failure()
            if self._refused >= REFUSED_IN_A_ROW or (calls >= LEAST and failures >= calls * SHARE):
                self._open()

    def weighs_nothing(self, *, probe: bool) -> None:
        """Note a call that says nothing about the server; another one may find out."""
        if probe:
            self._probing = False

    def close(self) -> None:
        """Begin anew: the server is known to be well."""
        self._empty()
        self._refused = 0
        self._probing = False
        self._rest = FIRST_REST
        self._become(STATE_CLOSED)

    def _open(self) -> None:
        self._opened_at = self._now()
        self._refused = 0
        self._empty()
        self._become(STATE_OPEN)

    def _become(self, state: str) -> None:
        before, self._state = self._state, state
        closed = state == STATE_CLOSED
        if closed is not self.closed:
            self.closed = closed
            Changes.made += 1
        if before != state and self._changed is not None:
            self._changed(before, state)

    def _count_failure(self) -> tuple[int, int]:
        """Return the calls of the window, and how many of them failed."""
        if self._now() >= self._bucket_ends:
            self._begin_bucket()
        buckets = self._buckets
        buckets[-1][1] += 1
        buckets[-1][2] += 1
        return sum(each[1] for each in buckets), sum(each[2] for each in buckets)

    def _begin_bucket(self) -> None:
        """Begin the bucket of this part of time, and forget those outside the window."""
        part = int(self._now() / PART)
        buckets = self._buckets
        buckets.append([part, 0, 0])
        self._bucket_ends = (part + 1) * PART
        while buckets[0][0] <= part - BUCKETS:
            del buckets[0]

    def _empty(self) -> None:
        self._buckets.clear()
        self._bucket_ends = 0.0

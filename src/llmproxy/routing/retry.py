"""What comes after an attempt that did not succeed. Pure: no I/O, no clock of its own.

Rule 1: nothing is asked twice that could be done twice: what an engine may have begun to work
        on is asked again only where doing it again changes nothing.
Rule 2: a server that was silent is not asked twice, and no server more than twice.
Rule 3: what is wrong with the request is wrong everywhere: a 4xx is passed on, once.
Rule 4: retries are a share of the traffic, so that they cannot keep a fleet down.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from enum import Enum, auto

from llmproxy.errors import (
    ProxyError,
    UpstreamAuth,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
)
from llmproxy.headers import find
from llmproxy.protocol.engine_errors import Complaint
from llmproxy.records import Endpoint, InferenceRequest
from llmproxy.types import Header

MOST_ON_ONE = 2  # attempts on one server
MOST_BREAKS = 2  # connections that broke under one request: it may be what broke them
FIRST_PAUSE = 0.05  # seconds
LONGEST_PAUSE = 2.0
LONGEST_WAIT = 10.0  # seconds of Retry-After that are worth waiting out
DAY = 86_400  # seconds; more is not asked of anybody

RETRY_AFTER = b"retry-after"

BUDGET_SHARE = 0.2
BUDGET_WINDOW = 10.0  # seconds
BUDGET_LEAST = 10  # retries per window that are always allowed

# Doing it again changes nothing but the bill, and before the first byte there is none.
REPLAY_SAFE = frozenset(
    {"chat", "completions", "embeddings", "messages", "count_tokens", "rerank", "score"}
    | {"tokenize", "models"}
)


def is_replay_safe(endpoint: Endpoint, asked: InferenceRequest) -> bool:
    """Tell whether a request can be done twice without harm, whatever its method."""
    return endpoint.name in REPLAY_SAFE or (endpoint.name == "responses" and asked.unstored)


class Step(Enum):
    """What to do next."""

    AGAIN = auto()  # ask another server, or the same one after a pause
    LONGER = auto()  # ask for the model that takes longer prompts


class History:
    """The attempts of one request so far."""

    __slots__ = ("asked", "breaks", "made", "most", "replay_safe", "shut", "timeouts")

    def __init__(self, *, most: int, replay_safe: bool) -> None:
        self.most = most  # attempts in all
        self.replay_safe = replay_safe
        self.made = 0
        self.asked: dict[str, int] = {}
        self.shut: frozenset[str] = frozenset()  # servers that cannot be asked again
        self.breaks = 0
        self.timeouts = 0

    def asking(self, server: str) -> None:
        """Note that a server is being asked."""
        self.made += 1
        self.asked[server] = self.asked.get(server, 0) + 1

    @property
    def left(self) -> int:
        """How many attempts there may still be."""
        return self.most - self.made

    def may_ask(self, server: str) -> bool:
        """Tell whether a server may be asked (again) for this request."""
        return server not in self.shut and self.asked.get(server, 0) < MOST_ON_ONE

    def shut_out(self, server: str) -> None:
        """Have a server not be asked again."""
        self.shut |= {server}


def after_failure(history: History, server: str, failure: ProxyError) -> Step | None:
    """Return the wish after an attempt without an answer; None = the caller gets the failure."""
    if not isinstance(failure, UpstreamError) or history.left <= 0:
        return None
    if failure.unasked:
        history.shut_out(server)
        return Step.AGAIN
    if isinstance(failure, UpstreamAuth):
        history.shut_out(server)
        return Step.AGAIN
    if not history.replay_safe:
        return None
    if isinstance(failure, UpstreamTimeout):
        history.shut_out(server)
        history.timeouts += 1
        return Step.AGAIN if history.timeouts < 2 else None
    if isinstance(failure, UpstreamBroken):
        history.breaks += 1
        return Step.AGAIN if history.breaks < MOST_BREAKS else None
    return None


def after_answer(history: History, complaint: Complaint) -> Step | None:
    """Return the wish after an error answer; None = it is passed on."""
    if complaint in (Complaint.FINAL, Complaint.OPTION) or not history.replay_safe:
        return None
    if complaint is Complaint.TOO_LONG:
        return Step.LONGER
    return Step.AGAIN if history.left > 0 else None


def pause_before(
    same: int, *, retry_after: float | None, draw: Callable[[], float] = random.random
) -> float | None:
    """Return how long to wait before the same server is asked again; None = too long.

    `same` counts how often it was asked. Full jitter: callers that failed together do not
    come back together.
    """
    if retry_after is not None:
        if retry_after > LONGEST_WAIT:
            return None
        return retry_after + draw() * FIRST_PAUSE
    most = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**same)
    return draw() * most


def seconds_of(retry_after: bytes | None) -> float | None:
    """Read a Retry-After in seconds; what was a date has become seconds: see `in_seconds`."""
    if retry_after is None:
        return None
    try:
        value = float(retry_after)
    except ValueError:
        return None
    return value if 0 <= value <= DAY else None


def in_seconds(headers: list[Header], clock: Callable[[], float] = time.time) -> list[Header]:
    """Return the headers of an answer with seconds for a Retry-After that was a date.

    A date means something beside the answer's own Date, if there is one, which does not go on.
    """
    said = find(headers, RETRY_AFTER)
    if said is None or said.isdigit() or (until := _time_of(said)) is None:
        return headers
    now = _time_of(find(headers, b"date") or b"")
    left = min(max(0, math.ceil(until - (clock() if now is None else now))), DAY)
    wait = (RETRY_AFTER, b"%d" % left)
    return [wait if header[0] == RETRY_AFTER else header for header in headers]


def _time_of(date: bytes) -> float | None:
    """Read a date of HTTP, in seconds since 1970."""
    if not date.endswith(b"GMT"):
        return None
    try:
        return parsedate_to_datetime(date.decode("ascii")).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):  # it says so in various ways
        return None


class RetryBudget:
    """Retries that all requests of this process share."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._requests: deque[tuple[float, int]] = deque()  # when, and how many
        self._retries: deque[tuple[float, int]] = deque()
        self._asked = 0  # how many requests these are
        self._retried = 0
        self._began = now()
        self._lately = 0  # requests since then, which are not among them yet

    def request(self, now: float) -> None:
        """Count a request."""
        if now - self._began >= _GRAIN:
            self._begin(now)
        self._lately += 1

    def retry(self) -> bool:
        """Take one retry; False when there is none left for now."""
        now = self._now()
        if now - self._began >= _GRAIN:
            self._begin(now)
        self._retried -= _forget(self._retries, now)
        if self._retried >= max(BUDGET_LEAST, (self._asked + self._lately) * BUDGET_SHARE):
            return False
        self._retried += 1
        self._retries.append((now, 1))
        return True

    def _begin(self, now: float) -> None:
        """Begin to count anew, and put what was counted among what will be forgotten."""
        self._requests.append((self._began, self._lately))
        self._asked += self._lately - _forget(self._requests, now)
        self._lately = 0
        self._began = now


_GRAIN = 0.1  # seconds that are counted as one


def _forget(counts: "deque[tuple[float, int]]", now: float) -> int:
    gone = 0
    while counts and now - counts[0][0] >= BUDGET_WINDOW:
        gone += counts.popleft()[1]
    return gone

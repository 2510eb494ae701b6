"""The clocks of one client: until when it may take its time, and for what.

Bytes renew none of them, except for those of a large body, which has to keep up a rate.
"""

import asyncio
from typing import Protocol

from llmproxy.server.bounds import Bounds
from llmproxy.server.deadlines import Deadlines
from llmproxy.server.progress import Progress
from llmproxy.server.sockets import FOR_EVER


class Owner(Protocol):
    """The connection, as far as it is seen from here."""

    def look(self, now: float) -> None:
        """Act on a deadline that has passed."""


class ClientClock:
    """One deadline at a time."""

    __slots__ = (
        "_body_began_at",
        "_bounds",
        "_deadlines",
        "_first_head_due",
        "_loop",
        "_owner",
        "_progress",
        "deadline",
        "due",
    )

    def __init__(
        self,
        owner: Owner,
        transport: asyncio.Transport,
        bounds: Bounds,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._owner: Owner | None = owner
        self._bounds = bounds
        self._deadlines = deadlines
        self._loop = loop
        self._progress = Progress(transport, bounds.write_timeout)
        self._body_began_at = 0.0
        self.due = FOR_EVER
        # A first request has no more time than since the connection was made.
        self._first_head_due: float | None = loop.time() + bounds.head_timeout
        self.set(self._first_head_due)

    def set(self, deadline: float) -> None:
        """Have the connection look then."""
        self.deadline = deadline
        if deadline < self.due:
            self._deadlines.file(self)

    def allow(self, seconds: float) -> None:
        """Have the connection look after so long."""
        self.set(self._loop.time() + seconds)

    def stop(self) -> None:
        """Wait for ever: nothing is expected of the client, and its first head was there."""
        self.deadline = FOR_EVER
        self._first_head_due = None

    def close(self) -> None:
        """The connection is gone. It and its clock hold each other, and would for long."""
        self.deadline = FOR_EVER
        self._deadlines.forget(self)
        self._owner = None

    def look(self, now: float) -> None:
        if self._owner is not None:
            self._owner.look(now)

    # The request

    def head_begins(self) -> None:
        due, self._first_head_due = self._first_head_due, None
        self.set(due if due is not None else self._loop.time() + self._bounds.head_timeout)

    def body_begins(self) -> None:
        self._first_head_due = None
        self._body_began_at = self._loop.time()
        self.set(self._body_began_at + self._bounds.body_timeout)

    def excuse(self, seconds: float) -> None:
        """For so long it was not the client who kept its body back."""
        self._body_began_at += seconds

    def body_due(self, received: int) -> float:
        """Return when a body must be complete of which so much has come."""
        allowed = self._bounds.body_timeout + received / self._bounds.body_rate
        return self._body_began_at + allowed

    # What is sent to the client

    def watch_progress(self, seconds: float) -> None:
        """Begin to watch whether it takes what waits for it, and look after so long."""
        now = self._loop.time()
        self._progress.start(now)
        self.set(now + seconds)

    def progress(self, now: float) -> bool:
        """Tell whether there is still hope."""
        return self._progress.made(now)

    @property
    def left(self) -> int:
        """Bytes that have not arrived."""
        return self._progress.left

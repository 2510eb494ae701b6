"""When a client is read: not while nobody takes its body, and seldom while it sends crumbs.

A byte costs as much to read as a kilobyte does. Two thousand clients that send one now and then
would keep everybody else waiting.

Rule: a client is given half a second for its request in crumbs; from then on it is read once or
twice a second, until it sends more at a time. It loses nothing, for its clocks are absolute.
"""

import asyncio
import random

from llmproxy.server.sockets import FOR_EVER

CRUMB = 256  # bytes; a read that brings fewer, and not all that there is to come
IN_CRUMBS = 0.5  # seconds after which it is no accident
REST = 0.5  # seconds at least, twice that at most: or all of them would soon come at once


class Intake:
    """Pauses and resumes the reading of one client."""

    __slots__ = ("_crumbs_since", "_heard_at", "_loop", "_paused_at", "_rest", "_transport", "open")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self.open = True  # somebody takes what is read
        self._paused_at = 0.0
        self._crumbs_since = FOR_EVER
        self._heard_at = 0.0
        self._rest: asyncio.TimerHandle | None = None

    def request_begins(self) -> None:
        """What came in crumbs before is forgiven."""
        self._crumbs_since = FOR_EVER

    def heard(self, size: int, deadline: float = FOR_EVER) -> None:
        """Note that a read brought so much of a request, and not its end.

        `deadline` is when it must be there: what comes shortly before that is not left lying.
        """
        if size >= CRUMB:
            self._crumbs_since = FOR_EVER
            return
        now = self._loop.time()
        if self._crumbs_since == FOR_EVER:
            self._crumbs_since = now
        elif (
            now - self._crumbs_since >= IN_CRUMBS
            and now - self._heard_at < REST
            and deadline - now > 2 * REST
        ):
            self._take_rest()
        self._heard_at = now

    def pause(self) -> None:
        """Nobody takes what would be read."""
        if self.open and not self._transport.is_closing():
            self.open = False
            self._paused_at = self._loop.time()
            if self._rest is None:
                self._transport.pause_reading()

    def resume(self) -> float:
        """Somebody does again; returns for how long nobody did."""
        if self.open or self._transport.is_closing():
            return 0.0
        self.open = True
        if self._rest is None:
            self._transport.resume_reading()
        return self._loop.time() - self._paused_at

    def wake(self) -> None:
        """Read whatever comes, at once."""
        paused = self._rest is not None or not self.open
        self._stop_rest()
        self.open = True
        if paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """There is nobody to be read any more."""
        self._stop_rest()

    def _take_rest(self) -> None:
        if self._rest is None and self.open and not self._transport.is_closing():
            self._transport.pause_reading()
            self._rest = self._loop.call_later(REST * (1 + random.random()), self._end_rest)

    def _end_rest(self) -> None:
        self._rest = None
        self._heard_at = self._loop.time()
        if self.open and not self._transport.is_closing():
            self._transport.resume_reading()

    def _stop_rest(self) -> None:
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.cancel()

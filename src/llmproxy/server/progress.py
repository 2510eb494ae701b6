"""Whether a client takes what waits for it, however slowly."""

import asyncio

from llmproxy.transport.http1.kernel import unconfirmed


class Progress:
    """Counts what has not arrived: a client that stands still for too long makes none."""

    def __init__(self, transport: asyncio.Transport, patience: float) -> None:
        self._transport = transport
        self._patience = patience
        self._left = 0
        self._moved_at = 0.0

    @property
    def left(self) -> int:
        """Bytes that have not arrived.

        Those that the kernel holds are among them: a slow reader may take minutes to make room
        there for more of ours.
        """
        return unconfirmed(self._transport)

    def start(self, now: float) -> None:
        """Begin to watch."""
        self._left = self.left
        self._moved_at = now

    def made(self, now: float) -> bool:
        """Look again, and tell whether there is still hope."""
        left = self.left
        if left < self._left:
            self._left = left
            self._moved_at = now
        return now - self._moved_at < self._patience

"""A request body that is passed on while it comes in."""

import asyncio
from collections.abc import AsyncIterator

from llmproxy.errors import ClientGone, RequestTimeout, RequestTooLarge
from llmproxy.types import Receive


class IncomingUpload:
    """Owns `receive` until its last piece was handed out.

    Only what `look` was asked for is ever kept: a piece is read from the client when the
    one before it has been taken by the model server.
    """

    def __init__(self, receive: Receive, *, length: int | None, limit: int, within: float) -> None:
        self.length = length
        self.started = False
        self._receive = receive
        self._limit = limit
        self._within = within
        self._size = 0
        self._looked_at: list[bytes] = []
        self._all_read = False
        self._through = asyncio.Event()

    async def look(self) -> bytes | None:
        """Read one piece more and keep it; None when there is none."""
        if self._all_read:
            return None
        piece = await self._next()
        self._looked_at.append(piece)
        return piece

    async def through(self) -> None:
        await self._through.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert not self.started, "an upload can be read once"
        self.started = True
        try:
            for piece in self._looked_at:
                yield piece
            self._looked_at.clear()
            while not self._all_read:
                yield await self._next()
        finally:
            self._through.set()

    async def _next(self) -> bytes:
        # The clock runs for each piece: how long a whole upload may take depends on its
        # size, and what it costs us to wait is nothing.
        try:
            async with asyncio.timeout(self._within or None):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(f"No more of the upload came for {self._within:g} s.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("The client left while it was sending its request.")
        piece: bytes = message.get("body", b"")
        self._size += len(piece)
        if self._size > self._limit:
            raise RequestTooLarge(f"The upload is larger than {self._limit} bytes.")
        self._all_read = not message.get("more_body", False)
        return piece

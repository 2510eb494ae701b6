"""A request body that is passed on while it comes in."""

import asyncio
from collections.abc import AsyncIterator, Callable

from llmproxy.errors import ClientGone, RequestTimeout, RequestTooLarge
from llmproxy.types import Receive


class IncomingUpload:
    """Owns `receive` until its last piece was handed out.

    Only what `look` was asked for is ever kept: a piece is read from the client when the
    one before it has been taken by the model server.
    """

    def __init__(self, receive: Receive, *, length: int | None, limit: int, within: float) -> None:
        self._length = length
        self.started = False
        self.check: Callable[[bytes], None] | None = None  # is told of each piece; may refuse it
        self.model_at: slice | None = None  # in what was looked at
        self._model: bytes | None = None  # what is to stand there instead
        self._receive = receive
        self._limit = limit
        self._within = within
        self._size = 0
        self._looked_at: list[bytes] = []
        self._all_read = False
        self._through = asyncio.Event()

    @property
    def length(self) -> int | None:
        if self._length is None or self._model is None or self.model_at is None:
            return self._length
        named: int = self.model_at.stop - self.model_at.start
        return self._length + len(self._model) - named

    def name(self, model: str) -> None:
        """Have it ask for another model than its caller does."""
        if self.model_at is not None:
            self._model = model.encode()

    async def look(self) -> bytes | None:
        """Read one piece more and keep it; None when there is none."""
        if self._all_read:
            return None
        piece = await self._next()
        self._looked_at.append(piece)
        return piece

    async def is_empty(self) -> bool:
        """Read one piece, and tell whether the whole of it is nothing."""
        await self.look()
        return self._all_read and not self._size

    async def through(self) -> None:
        await self._through.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert not self.started, "an upload can be read once"
        self.started = True
        try:
            for piece in self._renamed():
                yield piece
            self._looked_at.clear()
            while not self._all_read:
                yield await self._next()
        finally:
            self._through.set()

    def _renamed(self) -> list[bytes]:
        """Return what was looked at, with the model in it that it is to name."""
        place = self.model_at
        if self._model is None or place is None:
            return self._looked_at
        start = b"".join(self._looked_at)
        return [start[: place.start] + self._model + start[place.stop :]]

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
        if self.check is not None:
            self.check(piece)
        self._all_read = not message.get("more_body", False)
        return piece

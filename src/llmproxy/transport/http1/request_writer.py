"""The requests that go out over one connection, at the pace at which the upstream takes them."""

import asyncio

from llmproxy.errors import UpstreamTimeout
from llmproxy.records import Upload
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.kernel import unconfirmed
from llmproxy.transport.uploads import counted
from llmproxy.turns import my_turn

WRITE_STALL = 60.0  # seconds that an upstream may refuse to take a part of an upload
SMALL = 64 * 1024  # bytes; up to here head and body go out as one piece
AT_ONCE = 1024 * 1024  # bytes that the kernel is given before others have their turn


class RequestWriter:
    """Gives the event loop what it may have at once, and the rest in a task."""

    # One for each stream that is open, as its connection.
    __slots__ = ("_name", "_size", "_task", "_to_write", "_transport", "_writable")

    def __init__(self, name: str, transport: asyncio.Transport) -> None:
        self._name = name
        self._transport = transport
        self._writable: asyncio.Future[None] | None = None  # set while writing is paused
        self._size = 0  # bytes of the request
        self._task: asyncio.Task[None] | None = None  # None again once nobody wants it any more
        self._to_write = 0  # of a large request, bytes that the event loop was not given yet

    def send(self, head: bytes, body: bytes | Upload, call: Http1Call) -> None:
        """Send a request; `call` is told when that fails."""
        self._task = None
        if isinstance(body, bytes) and len(body) <= SMALL:
            data = head + body
            self._size = len(data)
            self._transport.write(data)
            return
        self._transport.write(head)
        if not isinstance(body, bytes):
            self._task = asyncio.create_task(self._pass_on(body, call))
            return
        self._size = len(head) + len(body)
        if len(body) <= AT_ONCE:
            self._transport.write(body)
        else:
            self._to_write = len(body)
            self._task = asyncio.create_task(self._hand_over(body))

    @property
    def sending(self) -> bool:
        """Whether a large request or an upload is still on its way."""
        return self._task is not None and not self._task.done()

    @property
    def takes_long(self) -> bool:
        """Whether the request was not given to the event loop at once."""
        return self._task is not None

    @property
    def unsent(self) -> float:
        """How much the upstream has not taken yet: bytes, and of an upload who knows what."""
        waiting: float = self._transport.get_write_buffer_size()
        if self._task is not None and self.sending:
            # An upload has a clock of its own, and equals nothing that was before.
            waiting += self._to_write or float("nan")
        return waiting

    @property
    def unheard(self) -> bool:
        """Whether none of the request has arrived, as far as known."""
        return self._to_write + unconfirmed(self._transport) >= self._size

    def stop(self) -> None:
        """Leave it at what has gone out."""
        if self._task is not None:
            self._to_write = 0
            self._task.cancel()
            self._task = None

    def pause(self) -> None:
        """The upstream takes no more for now."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    async def _hand_over(self, body: bytes) -> None:
        """Hand a large body to the kernel in steps.

        All at once, the kernel copies as much as it has room for: 1 to 9 ms.
        """
        view = memoryview(body)
        for start in range(0, len(body), AT_ONCE):
            await my_turn()
            while self._writable is not None and self._task is not None:
                await self._writable
                await my_turn()
            if self._task is None:
                return
            step = view[start : start + AT_ONCE]
            self._to_write -= len(step)
            self._transport.write(step)

    async def _pass_on(self, upload: Upload, call: Http1Call) -> None:
        """Pass an upload on as it comes in."""
        transport = self._transport
        chunked = upload.length is None
        try:
            async for piece in counted(upload):
                if piece:
                    transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                while self._writable is not None and self._task is not None:
                    async with asyncio.timeout(WRITE_STALL):
                        await self._writable
                if self._task is None:
                    return
            if chunked:
                transport.write(b"0\r\n\r\n")
        except TimeoutError:
            call.fail(UpstreamTimeout(f"{self._name} stopped taking the upload."))
            transport.abort()
        except Exception as error:
            # Too large, too slow, or gone: the caller's side of it failed, and half a
            # request must not look like a whole one.
            call.fail(error)
            transport.abort()

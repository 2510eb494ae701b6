"""Asking through a transport, and uploads that a test hands over piece by piece."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from llmproxy.records import Upload
from llmproxy.transport import Call, Outgoing, Transport
from llmproxy.transport.interface import Underway
from llmproxy.types import Header
from tests.support.wire import PATIENCE, patience

HOST: list[Header] = [(b"host", b"engine.test")]
GET = Outgoing(b"GET", b"/v1/models", HOST)
HEAD = Outgoing(b"HEAD", b"/v1/models", HOST)


def post(body: bytes | Upload = b"{}", *, headers: Sequence[Header] = ()) -> Outgoing:
    """Return a request with a body, which may be asked twice."""
    target = b"/v1/chat/completions"
    return Outgoing(b"POST", target, [*HOST, *headers], body, replay_safe=True)


def order(body: bytes = b"{}") -> Outgoing:
    """Return a request that must not be done twice."""
    return Outgoing(b"POST", b"/v1/batches", HOST, body)


class Pieces:
    """An upload: what the test puts in comes out; the end is the test's to say."""

    def __init__(self, *pieces: bytes, length: int | None = None, open_end: bool = False) -> None:
        self._length = length
        self._queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self._through = asyncio.Event()
        self.asked = 0  # how many pieces the transport has asked for
        for piece in pieces:
            self.put(piece)
        if not open_end:
            self.end()

    @property
    def length(self) -> int | None:
        return self._length

    @property
    def started(self) -> bool:
        return self.asked > 0

    async def through(self) -> None:
        await self._through.wait()

    def put(self, piece: bytes) -> None:
        """Let one more piece come in."""
        self._queue.put_nowait(piece)

    def end(self) -> None:
        """Say that this was all."""
        self._queue.put_nowait(None)

    def fail(self, error: BaseException) -> None:
        """Let the caller's side of it break."""
        self._queue.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.asked += 1
            piece = await self._queue.get()
            if not isinstance(piece, bytes):
                self._through.set()
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece


class Asking:
    """Stands for the request on whose behalf is asked."""

    call: Underway | None = None


async def ask(
    transport: Transport,
    outgoing: Outgoing = GET,
    *,
    connect: float = PATIENCE,
    answer: float = PATIENCE,
) -> Call:
    """Open a call with clocks that do not matter unless the test sets them."""
    if outgoing.asker is None:
        outgoing = outgoing._replace(asker=Asking())
    return await transport.open(outgoing, connect=connect, answer=answer)


async def reads(call: Call) -> list[bytes]:
    """Return what each read brought, up to the end of the answer."""
    found: list[bytes] = []
    while part := await call.read(PATIENCE):
        found.append(part)
    return found


async def body_of(call: Call) -> bytes:
    """Return the whole body."""
    return b"".join(await reads(call))


async def fetch(
    transport: Transport, outgoing: Outgoing = GET, *, answer: float = PATIENCE
) -> tuple[int, bytes]:
    """Ask, read to the end, let go; return status and body."""
    call = await ask(transport, outgoing, answer=answer)
    try:
        return call.status, await body_of(call)
    finally:
        call.close()


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until something has come about."""
    async with patience(what):
        while not condition():  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let the loop do what is already on its way: a close, a wake-up, a return to the pool."""
    for _ in range(10):
        await asyncio.sleep(0)


class NoTransport:
    """The way to a server that is only chosen, and never asked."""

    async def open(self, outgoing: Outgoing, *, connect: float, answer: float) -> Call:
        raise AssertionError("nobody is to be asked")

    async def aclose(self) -> None:
        """Nothing is open."""

    def statistics(self) -> dict[str, int]:
        return {"open": 0, "idle": 0, "waiting": 0}

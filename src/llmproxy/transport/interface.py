"""What the rest of the proxy may ask of a transport.

A transport speaks to one upstream. `open` sends a request and returns as soon as the head
of the answer is there; the `Call` it returns gives the body out as it comes in. Both kinds,
our own HTTP/1.1 and the httpx one, pass the same tests.

Everything that goes wrong is raised as one of three errors of `llmproxy.errors`:
`UpstreamUnreachable` (no connection: nothing was sent), `UpstreamTimeout` (a clock of ours
ran out), `UpstreamBroken` (the connection broke or spoke nonsense); besides them only
`Overloaded` (no place in the queue for a connection) and what reading an upload raises.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from llmproxy.records import Upload
from llmproxy.types import Header

SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Repeated:
    """Headers that many requests have in common, and what they look like on the wire.

    The latter is for the transport to note, and whoever repeats a request keeps both.
    """

    __slots__ = ("headers", "written")

    def __init__(self, headers: Sequence[Header] = ()) -> None:
        self.headers = tuple(headers)
        self.written: bytes | None = None


class Underway(Protocol):
    """A call, or the connection that is being made for it."""

    def close(self) -> None:
        """Let go at once. Whoever waits for it is told nothing by that, and is to be cancelled."""


class Asker(Protocol):
    """Whoever asks, and may be gone before the answer is there."""

    call: Underway | None
    """To be closed when there is nobody any more to answer."""


class Outgoing(NamedTuple):
    """A request, ready to be sent.

    `repeated` and `headers` are complete but for the framing of the body (Content-Length or
    Transfer-Encoding), which the transport adds.

    `replay_safe` says that asking twice does no harm where the method does not say so.

    `asker` is given what can be closed as soon as there is something, long before `open` returns.
    """

    method: bytes
    target: bytes
    headers: list[Header]
    body: bytes | Upload = b""
    repeated: Repeated = Repeated()  # go before the others
    replay_safe: bool = False
    asker: Asker | None = None

    @property
    def harmless(self) -> bool:
        """Whether asking twice does no harm."""
        return self.replay_safe or self.method in SAFE_METHODS


class Silence(Exception):
    """Nothing came within the time that was asked for. The call is as alive as before."""


Resent = Callable[[], None]
"""Told each time a request is sent again."""

Taker = Callable[[bytes], bool]
"""Takes what one read has brought, at once; tells whether it wants more."""


class Call(Protocol):
    """One answer, from its head to its last byte."""

    status: int
    headers: list[Header]
    """Names in lower case, in the order they came; informational answers left out."""

    reused: bool
    """Whether the connection had carried an earlier call."""

    @property
    def over(self) -> bool:
        """Whether everything has been read: the last byte is out, and it was the last."""

    def at_once(self) -> bytes | None:
        """Return the whole body and be over, where that needs neither waiting nor joining.

        None where it does, and also of an answer that is over: then it is for `read`.
        """

    async def read(self, within: float) -> bytes:
        """Return what one read from the socket brought, or b"" after the last byte.

        Raises `Silence` when nothing comes for `within` seconds (0 = wait for ever); it may
        be asked again. Raises `UpstreamBroken` when the answer ends before it is complete:
        a counted body that is too short, a chunked one without its last chunk. A body that
        is delimited by the close of the connection ends when the connection does, unless
        it was reset.
        """

    async def flow(self, sink: Taker, within: float, at_most: float) -> bool:
        """Hand what comes in to `sink`, in the turn of the event loop in which it comes.

        Returns True when there is something to `read`: the last of the answer, why it has
        broken, or, of a transport that cannot hand on, just the next. Returns False when the
        sink wants no more, or `at_most` seconds are over. Raises `Silence` as `read` does,
        and whatever the sink has raised.
        """

    def close(self) -> None:
        """Let go: the connection goes back to the pool if the answer is complete, and is
        closed at once if not. May be called at any time and more than once."""


class Transport(Protocol):
    """The way to one upstream."""

    async def open(self, outgoing: Outgoing, *, connect: float, answer: float) -> Call:
        """Send a request and return once the final head of the answer is there.

        `connect` is how long to wait for a connection, `answer` how long for the head after
        the request is out (0 = for ever). Cancelling closes what was opened.

        A server may close an idle connection just as we write to it. A request that met such
        an end is sent again, once and unseen, on a connection that is fresh: at any rate when
        it is known not to have arrived, else only if it is harmless, and the end came too soon
        for any work to have been done. Whoever made the transport is told.
        """

    async def aclose(self) -> None:
        """Close every connection."""

    def statistics(self) -> dict[str, int]:
        """Return `open`, `idle`, `waiting`: connections and calls queued for one."""

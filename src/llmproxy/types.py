"""The names of ASGI, as this package spells them. Imports nothing of ours."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Header = tuple[bytes, bytes]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Writer:
    """What stands behind a `send` of our own: it also takes a piece of a body at once.

    A layer that wraps `send` hides it, and is given every message as ever: to look behind is
    for whoever has a piece to send, and was given this very `send`.
    """

    __slots__ = ()

    def takes_whole(self, status: int) -> bool:
        """Tell whether an answer that is there as a whole may be sent by `begin` and `end`."""
        return False

    def begin(self, status: int, headers: list[Header], lines: bytes = b"") -> None:
        """Send the head of an answer. `lines` are of ours and go into it as they are."""
        raise NotImplementedError

    def end(self, body: bytes) -> bool:
        """Send the last piece; tell whether the client takes it."""
        raise NotImplementedError

    def write(self, body: bytes) -> bool:
        """Send a piece that is not the last; tell whether the client takes more."""
        raise NotImplementedError

    def direct(self) -> "Writer":
        """Return who may be written to from here on, if this one only hands pieces on."""
        return self

    async def room(self) -> None:
        """Return once the client takes more, or is gone."""
        raise NotImplementedError


def writer_of(send: Send) -> Writer | None:
    """Return what stands behind a `send`; None when it is not ours."""
    behind = getattr(send, "__self__", None)
    return behind if isinstance(behind, Writer) else None


EXCHANGE = "llmproxy.exchange"
"""The ASGI extension under which our own server offers a `WatchedExchange`."""


class WatchedExchange(Protocol):
    """What our own server does for a request, so that no layer has to.

    It cuts a client that does not take its answer, and a body that does not arrive; and it
    tells of a hang-up without a task that waits for it in `receive`, which costs 20 us.
    """

    task: Any
    gone: bool
    call: Any
    """What a server is asked on its behalf, if that is known: closed soon after a hang-up."""

    def notes(self, headers: list[Header]) -> dict[Any, Any] | None:
        """Return where to note what follows from these headers alone.

        They are the same as in an earlier request on the same connection, but for their
        Content-Length; None when they are not. It ends with the connection.
        """

    def take_body(self) -> bytes | None:
        """Take the body where all of it is there; None where it has to be received."""

    def cancel_when_gone(self, wanted: bool) -> None:
        """Have the task of the request cancelled as soon as the client hangs up, or no more."""


def receives(exchange: WatchedExchange, receive: Receive) -> bool:
    """Tell whether a `receive` is the server's own: a layer that wraps it is to be asked."""
    return getattr(receive, "__self__", None) is exchange


def watched(scope: Scope) -> WatchedExchange | None:
    """Return what our own server offers; None under every other one."""
    extensions = scope.get("extensions")
    return extensions.get(EXCHANGE) if extensions is not None else None

"""The names of ASGI, as this package spells them. Imports nothing of ours."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Header = tuple[bytes, bytes]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE = "llmproxy.exchange"
"""The ASGI extension under which our own server offers a `WatchedExchange`."""


class WatchedExchange(Protocol):
    """What our own server does for a request, so that no layer has to.

    It cuts a client that does not take its answer, and a body that does not arrive; and it
    tells of a hang-up without a task that waits for it in `receive`, which costs 20 us.
    """

    task: Any
    gone: bool

    def cancel_when_gone(self, wanted: bool) -> None:
        """Have the task of the request cancelled as soon as the client hangs up, or no more."""


def watched(scope: Scope) -> WatchedExchange | None:
    """Return what our own server offers; None under every other one."""
    exchange: WatchedExchange | None = scope.get("extensions", {}).get(EXCHANGE)
    return exchange

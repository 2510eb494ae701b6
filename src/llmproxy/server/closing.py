"""How the connection of a client is closed.

Rule 1: what was said arrives, as long as the client takes it.
Rule 2: what was cut shows: where the end of the connection is the end of the answer, only a
        reset tells that it was none.
"""

import asyncio

from llmproxy.server.bounds import Bounds
from llmproxy.server.client_clock import ClientClock
from llmproxy.server.intake import Intake
from llmproxy.server.sockets import reset_on_close


def close(transport: asyncio.Transport, clock: ClientClock, bounds: Bounds) -> None:
    """Close once everything is sent; a client that does not take it gets its time."""
    clock.watch_progress(bounds.write_timeout / 4)
    transport.close()


def break_off(transport: asyncio.Transport) -> None:
    """Close at once, such that the client knows that something is missing."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        reset_on_close(sock)
    transport.abort()


def close_one_side(
    transport: asyncio.Transport, clock: ClientClock, intake: Intake, bounds: Bounds
) -> None:
    """Close such that the answer arrives although the client is still sending.

    Closing a socket with unread bytes resets it, and the reset may overtake the answer: so first
    only our side is closed, and what the client still sends is to be thrown away.
    """
    clock.watch_progress(bounds.linger)
    intake.wake()
    if transport.can_write_eof():  # TLS cannot; its client goes by our `close`
        transport.write_eof()


def look_at_rest(
    transport: asyncio.Transport, clock: ClientClock, bounds: Bounds, now: float
) -> None:
    """Abort once the last word has arrived; reset when nobody takes it any more."""
    left = clock.left
    if left and clock.progress(now):
        clock.set(now + min(bounds.linger, bounds.write_timeout))
    elif left:
        break_off(transport)
    elif transport.is_closing():
        transport.abort()
    else:
        close(transport, clock, bounds)

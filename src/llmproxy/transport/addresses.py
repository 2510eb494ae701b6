"""From a name to the address that answers first."""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from llmproxy.transport.never_called import leads_astray

T = TypeVar("T")
Address = tuple[str, int]
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

FRESH = 5.0  # seconds that a resolved name is believed
HEAD_START = 0.25  # seconds before the next address is tried beside the last; RFC 8305, section 5


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Ask the system for the addresses of a name, in its order of preference."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # SOCK_STREAM
    return list(dict.fromkeys((str(entry[4][0]), port) for entry in found))


class Addresses:
    """The addresses of one host, asked for again every few seconds."""

    def __init__(
        self, host: str, port: int, ask: Resolve = resolve, *, found: bool = False
    ) -> None:
        """`found`: others than the operator may have chosen the name, and where it leads."""
        self._found = found
        self._host = host
        self._port = port
        self._ask = ask
        self._known: Sequence[Address] = ()
        self._until = 0.0
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        self._known, self._until = [(host, port)], float("inf")

    async def get(self) -> Sequence[Address]:
        """Return the addresses, at most `FRESH` seconds old."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            known = await self._ask(self._host, self._port)
            if self._found:
                known = [address for address in known if not leads_astray(address[0])]
            self._known = known
            self._until = now + FRESH
        return self._known


async def first_to_connect(
    addresses: Sequence[Address],
    connect: Callable[[Address], Awaitable[T]],
    discard: Callable[[T], Any],
) -> T:
    """Return the first connection that comes about, trying the addresses in their order.

    The next address is tried as soon as the one before has failed, and beside it when it
    has not answered within `HEAD_START`. What connects too late is discarded.
    """
    if not addresses:
        raise OSError("the name has no address")
    if len(addresses) == 1:
        return await connect(addresses[0])

    tries: list[asyncio.Future[T]] = []
    failures: list[BaseException] = []
    try:
        for number, address in enumerate(addresses, 1):
            tries.append(asyncio.ensure_future(connect(address)))
            head_start = HEAD_START if number < len(addresses) else None
            if (winner := await _first(tries, failures, head_start)) is not None:
                tries.remove(winner)
                return winner.result()
        raise failures[0]
    finally:
        for late in tries:
            late.cancel()
            late.add_done_callback(lambda done: _discard(done, discard))


async def _first(
    tries: list[asyncio.Future[T]], failures: list[BaseException], head_start: float | None
) -> asyncio.Future[T] | None:
    """Wait for a success, a head start that is over, or until every try has failed."""
    while pending := [each for each in tries if not each.done()]:
        done, _ = await asyncio.wait(
            pending, timeout=head_start, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            return None
        for each in done:
            failure = each.exception()
            if failure is None:
                return each
            failures.append(failure)
        if head_start is not None:
            return None  # the one that just failed makes room for the next at once
    return None


def _discard(done: asyncio.Future[T], discard: Callable[[T], Any]) -> None:
    if not done.cancelled() and done.exception() is None:
        discard(done.result())

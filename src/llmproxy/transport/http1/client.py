"""The transport of the data path: one pool, one upstream."""

import asyncio

from llmproxy.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from llmproxy.records import Upstream
from llmproxy.transport.addresses import Address, Addresses, Resolve, first_to_connect, resolve
from llmproxy.transport.http1.call import Http1Call
from llmproxy.transport.http1.connection import Connection
from llmproxy.transport.http1.dialing import Dialing
from llmproxy.transport.http1.pool import Pool
from llmproxy.transport.interface import Asker, Outgoing, Resent, Silence
from llmproxy.transport.limits import PoolLimits
from llmproxy.transport.tls import tls_for

FARTHEST = 0.25  # seconds; a server that took longer to connect to was not merely far away


class Http1Transport:
    """HTTP/1.1 to one upstream over TCP, TLS or a unix socket."""

    def __init__(
        self,
        upstream: Upstream,
        limits: PoolLimits,
        *,
        resent: Resent = lambda: None,
        resolve: Resolve = resolve,
    ) -> None:
        self._upstream = upstream
        self._limits = limits
        self._resent = resent
        self._tls = tls_for(upstream)
        self._name = upstream.server_name or upstream.host
        self._addresses = Addresses(upstream.host, upstream.port, resolve, found=upstream.found)
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(limits, self._loop)

    async def open(self, outgoing: Outgoing, *, connect: float, answer: float) -> Http1Call:
        # Half an upload cannot be sent again, so it does not go where it may get lost.
        repeatable = isinstance(outgoing.body, bytes)
        connection = self._take_idle() if repeatable else None
        if connection is None:
            connection = await self._obtain(connect, outgoing, fresh=not repeatable)
        reused = connection.calls > 0
        try:
            return await self._ask(connection, outgoing, answer)
        except UpstreamBroken:
            if not reused or not repeatable or not self._was_idle(connection, outgoing):
                raise
        connection = await self._obtain(connect, outgoing, fresh=True)
        self._resent()
        return await self._ask(connection, outgoing, answer)

    async def aclose(self) -> None:
        self._pool.close()

    def statistics(self) -> dict[str, int]:
        return self._pool.statistics()

    async def _ask(self, connection: Connection, outgoing: Outgoing, answer: float) -> Http1Call:
        if connection.closed:
            raise UpstreamBroken(f"{self._upstream.name} closed the connection.")
        call = connection.ask(outgoing)
        if outgoing.asker is not None:
            outgoing.asker.call = call
        unsent = connection.unsent
        try:
            while True:
                try:
                    await call.head(answer)
                    return call
                except Silence:
                    # The upstream has its whole time from when the request is out, and as
                    # long as it is still taking it there is no hurry.
                    before, unsent = unsent, connection.unsent
                    if unsent == 0 == before or (unsent and unsent == before):
                        raise UpstreamTimeout(
                            f"{self._upstream.name} did not answer within {answer:g} s."
                        ) from None
        except BaseException:
            call.close()
            raise

    def _was_idle(self, connection: Connection, outgoing: Outgoing) -> bool:
        """Tell whether a connection ended for being idle, and not for what was asked on it.

        What must not be done twice is asked again only where nothing of it had arrived. For the
        rest it is enough that the server has had no time to do much.
        """
        if connection.answered:
            return False
        if connection.unheard:
            return True
        soon = self._limits.race + min(connection.round_trip, FARTHEST)
        return outgoing.harmless and self._loop.time() - connection.asked_at < soon

    def _take_idle(self) -> Connection | None:
        """Return an idle connection that will do."""
        while (connection := self._pool.take_idle()) is not None:
            if self._will_do(connection):
                return connection
            connection.abandon()
        return None

    def _will_do(self, connection: Connection) -> bool:
        """Tell whether a connection that was used before may be used again.

        Asking the kernel takes 1 us. What lies there was said before anybody asked: taken for
        the answer, it would be somebody else's. And of an end nobody has to be asked again.
        """
        return not connection.closed and not connection.ended_unseen

    async def _obtain(self, connect: float, outgoing: Outgoing, *, fresh: bool) -> Connection:
        """Return a connection to ask on: a new one, or an idle one unless `fresh`."""
        if fresh:
            self._pool.make_room()
        granted = await self._pool.place()
        if granted is not None:
            if not fresh and self._will_do(granted):
                return granted
            self._pool.take_place_of(granted)
        return await self._dial(connect, outgoing.asker)

    async def _dial(self, connect: float, asker: Asker | None) -> Connection:
        name = self._upstream.name
        began = self._loop.time()
        try:
            async with asyncio.timeout(connect or None):
                if asker is None:
                    connection = await self._connect()
                else:
                    asker.call = dialing = Dialing(self._connect(), self._loop)
                    connection = await dialing.made()
        except TimeoutError as exc:
            self._pool.not_made()
            failure = UpstreamTimeout(f"{name} took no connection within {connect:g} s.")
            failure.unasked = True
            raise failure from exc
        except (OSError, UnicodeError) as exc:  # the latter for a name that cannot be one
            self._pool.not_made()
            raise UpstreamUnreachable(f"{name} cannot be reached.") from exc
        except BaseException:
            self._pool.not_made()
            raise
        connection.round_trip = self._loop.time() - began
        self._pool.made(connection)
        return connection

    async def _connect(self) -> Connection:
        if self._upstream.scheme == "unix":
            _, connection = await self._loop.create_unix_connection(
                self._new_connection, self._upstream.path
            )
            return connection
        addresses = await self._addresses.get()
        return await first_to_connect(addresses, self._connect_to, Connection.abandon)

    async def _connect_to(self, address: Address) -> Connection:
        host, port = address
        _, connection = await self._loop.create_connection(
            self._new_connection,
            host,
            port,
            ssl=self._tls,
            server_hostname=self._name if self._tls is not None else None,
        )
        return connection

    def _new_connection(self) -> Connection:
        return Connection(self._upstream.name, self._pool, self._loop)

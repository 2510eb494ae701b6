"""A relay that could not do less: the control of what a delay behind it owes to the machine.

    python -m benchmarks.hardship.bare_relay --upstream PORT

It prints its port, gives each client a connection of its own to the upstream, and closes that as
soon as the client has left.
"""

import argparse
import asyncio
import gc
from typing import cast

import uvloop


class Back(asyncio.Protocol):
    """The connection to the upstream."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)


class Front(asyncio.Protocol):
    """The connection of a client."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._asked = b""
        self._back: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._dialing = asyncio.ensure_future(self._dial(cast("asyncio.Transport", transport)))

    async def _dial(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self._back, _ = await loop.create_connection(
            lambda: Back(client), "127.0.0.1", self._upstream
        )
        self._back.write(self._asked)

    def data_received(self, data: bytes) -> None:
        if self._back is None:
            self._asked += data
        else:
            self._back.write(data)

    def eof_received(self) -> None:
        self._let_go()

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._back is not None:
            self._back.abort()


async def serve(upstream: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Front(upstream), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upstream", type=int, required=True)
    uvloop.run(serve(parser.parse_args().upstream))


if __name__ == "__main__":
    main()

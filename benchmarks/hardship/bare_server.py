"""A server that could not do less: the control of what a figure owes to the machine.

    python -m benchmarks.hardship.bare_server

It prints its port. A request without a body is answered with 404 at once, whatever it asks;
one that never ends is never answered.
"""

import asyncio
import gc
from typing import cast

import uvloop

BODY = b'{"error":{"message":"Nothing is served at this path.","code":"not_found"}}'
ANSWER = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class Bare(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._transport.write(ANSWER % (len(BODY), BODY))


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Bare, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())

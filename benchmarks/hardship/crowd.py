"""Many clients that read their streams, in a process that can be killed.

    python -m benchmarks.hardship.crowd --port 8080 --count 1000

It prints a line once all of them have got something, and never ends by itself.
"""

import argparse
import asyncio
from typing import cast

import uvloop

from benchmarks.hardship.flood import ASK


class Reader(asyncio.Protocol):
    """One client."""

    def __init__(self) -> None:
        self.begun = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(ASK)

    def data_received(self, data: bytes) -> None:
        if not self.begun.done():
            self.begun.set_result(None)


async def read(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    readers = []
    for _ in range(count):
        _, reader = await loop.create_connection(Reader, "127.0.0.1", port)
        readers.append(reader)
    for reader in readers:
        await reader.begun
    print("reading", flush=True)
    await loop.create_future()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    uvloop.run(read(args.port, args.count))


if __name__ == "__main__":
    main()

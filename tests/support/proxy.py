"""A real `llmproxy serve`, as somebody would start it."""

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.support.ports import free_port
from tests.support.process import Process, answering, running

UNROUTED = {"LLMPROXY_MIDDLEWARE": "auth,rate_limit"}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that answers."""

    port: int
    process: Process
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"


@asynccontextmanager
async def serving(
    environment: Mapping[str, str], *, arguments: Sequence[str] = ()
) -> AsyncIterator[Proxy]:
    """Start `llmproxy serve` on a free port and wait for /health/live.

    SIGTERM ends it with the block; one that does not leave fails the test. It does not route
    unless it is told to: the upstreams are to be asked nothing but what a test asks.
    """
    port = free_port()
    command = [sys.executable, "-m", "llmproxy", "serve", *arguments]
    async with running(command, {**UNROUTED, "LLMPROXY_PORT": str(port), **environment}) as process:
        await answering(process, port, "/health/live")
        yield Proxy(port, process)

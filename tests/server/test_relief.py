"""A worker whose memory is nearly full lets idle connections go, and nobody else."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmproxy.application import LLMProxy
from llmproxy.rate_limit.pressure import Memory
from llmproxy.server.worker import Server, bounds_of, config_for
from llmproxy.server.worker_process import SERVES
from llmproxy.settings import Settings, load
from tests.server.family import Engine, get, remainder, stream
from tests.support.client import raw_client
from tests.support.streams import CHAT
from tests.support.upstream import scripted
from tests.support.wire import patience

NEARLY_FULL = Memory(used=96, limit=100)


@asynccontextmanager
async def working(upstream: str) -> AsyncIterator[tuple[LLMProxy, int]]:
    """Run the server of a worker in this process; yields its app and its port."""
    settings = load(Settings, {"LLMPROXY_UPSTREAMS": upstream}).settings
    app = LLMProxy(settings)
    threshold = gc.get_threshold()
    supervisor, lifeline = socket.socketpair()
    with supervisor, lifeline, socket.socket() as listening:
        for end in (supervisor, lifeline):
            end.setblocking(False)
        listening.bind(("127.0.0.1", 0))
        server = Server(config_for(settings, app), app, bounds_of(settings), lifeline)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        async with patience("the worker serves"):
            assert await asyncio.get_running_loop().sock_recv(supervisor, 1) == SERVES
        try:
            yield app, listening.getsockname()[1]
        finally:
            asyncio.get_running_loop().remove_reader(lifeline)
            server.should_exit = True
            await task
            gc.unfreeze()
            gc.set_threshold(*threshold)


async def test_only_idle_connections_are_closed() -> None:
    """A stream goes on to its end; who says nothing is closed, whether it has asked or not."""
    engine = Engine()
    async with (
        scripted(engine.script) as upstream,
        working(upstream.url) as (app, port),
        raw_client(port=port) as reader,
        raw_client(port=port) as idle,
        raw_client(port=port) as silent,
    ):
        await stream(reader)
        await get(idle, b"/health/live")
        app.pressure.memory(NEARLY_FULL)
        await idle.closed()
        await silent.closed()
        engine.go_on.set()
        rest = await remainder(reader)

    assert CHAT.events[0] + rest == CHAT.whole
    assert reader.complete

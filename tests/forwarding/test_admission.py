"""Requests that wait for their turn, with everything real around them."""

import asyncio
from contextlib import AsyncExitStack

from tests.support.client import RawClient, request_bytes
from tests.support.rig import Rig, proxied
from tests.support.upstream import Exchange, scripted
from tests.support.wire import patience

ASK = request_bytes(body=b'{"model":"m"}')


async def depth(rig: Rig, expected: int) -> None:
    """Wait until so many requests are in the queue."""
    async with patience(f"{expected} requests are in the queue"):
        while rig.sample("queue_depth") != expected:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.001)


async def test_waiting_leaving_and_being_turned_away() -> None:
    """One at work, two in the queue: the next is refused, who leaves makes room, all others
    are answered in their order."""
    answer = asyncio.Semaphore(0)

    async def engine(exchange: Exchange) -> None:
        if (await exchange.request()).method == b"POST":
            await answer.acquire()
        exchange.json({"choices": []})

    async with (
        scripted(engine) as server,
        proxied(server.upstream, max_inflight=1, queue_size=2) as rig,
        AsyncExitStack() as stack,
    ):
        clients: list[RawClient] = []

        async def ask() -> RawClient:
            client = await stack.enter_async_context(rig.client())
            client.send(ASK)
            clients.append(client)
            return client

        await ask()
        await server.reached()
        for waiting in (1, 2):
            await ask()
            await depth(rig, waiting)

        refused = await rig.ask(ASK)
        models = await rig.ask(request_bytes(b"/v1/models", method=b"GET", body=None))

        clients[1].close()
        await depth(rig, 1)
        last = await ask()
        await depth(rig, 2)
        for _ in range(3):
            answer.release()
        statuses = [(await client.answer()).status for client in (clients[0], clients[2], last)]
        line = next(each for each in rig.log.lines if each["outcome"] == "client_gone")

        assert refused.status == 503
        assert b'"code":"overloaded"' in refused.body
        assert 1 <= int(refused.header(b"retry-after") or b"0") <= 60
        assert models.status == 200
        assert statuses == [200, 200, 200]
        assert line["status"] == 499
        assert line["attempts"] == 0
        assert sum(request.method == b"POST" for request in server.requests) == 3
        assert rig.sample("queue_seconds_count") == 3
        assert rig.sample("queue_depth") == 0


async def test_a_deadline_in_the_queue() -> None:
    """504 when the caller's time is over, and the model server was never asked."""

    async def engine(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.closed()

    hurried = request_bytes(headers=[(b"x-llmproxy-timeout", b"0.1")], body=b'{"model":"m"}')
    async with (
        scripted(engine) as server,
        proxied(server.upstream, max_inflight=1) as rig,
        rig.client() as first,
    ):
        first.send(ASK)
        await server.reached()
        answer = await rig.ask(hurried)

        assert answer.status == 504
        assert b'"code":"deadline_too_short"' in answer.body
        assert len(server.requests) == 1

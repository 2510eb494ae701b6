"""SIGTERM: running answers may finish, nobody new is let in, and it ends in time."""

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.server.family import (
    READY,
    SERVE,
    Engine,
    board_of,
    client_of,
    get,
    lives,
    refused,
    remainder,
    stream,
    two_workers,
    until,
    workers_of,
)
from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.process import running
from tests.support.proxy import Proxy, serving
from tests.support.streams import CHAT, judge
from tests.support.upstream import Exchange, scripted

PLENTY = b"x" * 65536


@asynccontextmanager
async def one_stream_each(proxy: Proxy) -> AsyncIterator[list[RawClient]]:
    async with AsyncExitStack() as stack:
        clients = []
        for name in sorted(workers_of(proxy.process.pid)):
            client = await stack.enter_async_context(client_of(proxy, name))
            await stream(client)
            clients.append(client)
        yield clients


async def test_streams_finish_and_nobody_new_is_let_in() -> None:
    """On every worker; new connections are refused at once, not kept waiting."""
    engine = Engine()
    async with two_workers(engine) as proxy, one_stream_each(proxy) as clients:
        board = board_of(next(iter(workers_of(proxy.process.pid).values())))
        proxy.process.signal(signal.SIGTERM)
        await proxy.process.says("draining")
        await until(lambda: refused(proxy.port), "new connections were refused")
        engine.go_on.set()
        rests = [await remainder(client, stay=True) for client in clients]
        code = await proxy.process.finished()

    assert [CHAT.events[0] + rest for rest in rests] == [CHAT.whole, CHAT.whole]
    assert all(client.complete for client in clients)
    assert code == 0
    assert not board.exists()
    said = proxy.process.stderr
    assert said.count("draining") == 1
    assert "120 s" in said
    assert "Traceback" not in said


async def test_an_open_connection_hears_of_the_drain() -> None:
    """Readiness is gone, requests are still answered, and each answer closes."""
    engine = Engine()
    async with two_workers(engine) as proxy:
        async with (
            client_of(proxy, "worker-1") as idle,
            client_of(proxy, "worker-1") as asking,
            client_of(proxy, "worker-1") as streaming,
        ):
            await stream(streaming)
            proxy.process.signal(signal.SIGTERM)
            await until(lambda: refused(proxy.port), "the drain began")
            status, body = await get(idle, b"/health/ready")
            closing = idle.answers[-1].header(b"connection")
            asking.send(request_bytes(body=b'{"model":"m"}'))
            answer = await asking.answer()
            engine.go_on.set()
            await remainder(streaming)
            await idle.closed()
        assert await proxy.process.finished() == 0

    assert (status, json.loads(body)) == (503, {"status": "draining"})
    assert closing == b"close"
    assert answer.status == 200
    assert answer.header(b"connection") == b"close"


async def test_what_is_left_at_the_limit_is_ended_truthfully() -> None:
    """By the error event, without a terminating chunk, and it is in the log."""
    engine = Engine()
    async with (
        two_workers(engine, LLMPROXY_DRAIN_TIMEOUT="0.3") as proxy,
        one_stream_each(proxy) as clients,
    ):
        proxy.process.signal(signal.SIGTERM)
        rests = [await remainder(client) for client in clients]
        assert await proxy.process.finished() == 0

    for client, rest in zip(clients, rests, strict=True):
        verdict = judge(CHAT, CHAT.events[0] + rest)
        assert verdict.error is not None
        assert not verdict.complete
        assert not client.complete
    assert proxy.process.stderr.count("ending 1 answers that are not finished") == 2
    lines = [json.loads(line) for line in proxy.process.stdout.splitlines()]
    outcomes = [line["outcome"] for line in lines if line["path"] == "/v1/chat/completions"]
    assert outcomes == ["stopped", "stopped"]


async def test_a_reader_who_stands_still_does_not_hold_the_end_up() -> None:
    """Five seconds after the limit at the latest; here it is less than four."""

    async def gushing(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(PLENTY)
            await exchange.sent()

    async with (
        scripted(gushing) as server,
        serving({"LLMPROXY_UPSTREAMS": server.url, "LLMPROXY_DRAIN_TIMEOUT": "0.2"}) as proxy,
        raw_client(port=proxy.port) as client,
    ):
        client.send(CHAT.request)
        await client.head()
        client.stop_reading()
        upstream = await server.reached()
        await until(lambda: upstream.unsent, "the stream stood still")
        told_at = time.monotonic()
        proxy.process.signal(signal.SIGTERM)
        assert await proxy.process.finished() == 0
        lasted = time.monotonic() - told_at
        client.go_on_reading()
        await client.closed()

    assert lasted < 15.0
    assert client.was_reset  # half an answer must not look like the whole of it
    assert '"outcome":"stopped"' in proxy.process.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    """Whatever the drain time is; the streams still learn what happened, and so does the log."""
    engine = Engine()
    async with two_workers(engine) as proxy, one_stream_each(proxy) as clients:
        proxy.process.signal(number)
        await proxy.process.says("draining")
        told_at = time.monotonic()
        proxy.process.signal(number)
        rests = [await remainder(client) for client in clients]
        assert await proxy.process.finished() == 0
        lasted = time.monotonic() - told_at

    assert lasted < 15.0
    assert all(judge(CHAT, CHAT.events[0] + rest).error for rest in rests)
    assert proxy.process.stdout.count('"outcome":"stopped"') == 2


async def test_a_signal_for_every_process_is_one_order() -> None:
    """Service managers send SIGTERM to all of them, and the supervisor passes it on."""
    engine = Engine()
    async with two_workers(engine) as proxy, one_stream_each(proxy) as clients:
        for pid in workers_of(proxy.process.pid).values():
            os.kill(pid, signal.SIGTERM)
        proxy.process.signal(signal.SIGTERM)
        await until(lambda: refused(proxy.port), "the drain began")
        engine.go_on.set()
        rests = [await remainder(client) for client in clients]
        assert await proxy.process.finished() == 0

    assert [CHAT.events[0] + rest for rest in rests] == [CHAT.whole, CHAT.whole]


async def test_told_while_it_starts_it_ends() -> None:
    """No worker is left behind."""
    environment = {"LLMPROXY_UPSTREAMS": "http://127.0.0.1:9", "LLMPROXY_PORT": "0"}
    async with running(SERVE, environment) as process:
        await until(lambda: workers_of(process.pid), "a worker was started")
        workers = workers_of(process.pid).values()
        process.signal(signal.SIGTERM)
        assert await process.finished() == 0

    assert not any(lives(pid) for pid in workers)
    assert "Traceback" not in process.stderr
    assert READY not in process.stderr

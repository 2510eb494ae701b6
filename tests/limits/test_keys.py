"""Keys at a proxy that runs: who is let in, who is not, and how soon that changes."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from llmproxy.auth.issued import IssuedKeys
from llmproxy.store.redis import RedisStore
from llmproxy.store.urls import place
from llmproxy.types import Header
from tests.limits.fleet import ANSWER, Fleet, answers_at_once, ask, fleet, question
from tests.support.client import RawClient, request_bytes
from tests.support.redis_server import RedisServer
from tests.support.streams import CHAT
from tests.support.upstream import Exchange

KEY = "sk-ada-7hG2kQ"
WITHIN = 5.0  # seconds after which a change holds everywhere
BEARER, BASIC = (b"authorization", f"Bearer {KEY}".encode()), (b"authorization", b"Basic YWRh")

WRONG: list[list[Header]] = [
    [],
    [(b"authorization", b"Bearer ")],
    [BASIC],
    [(b"authorization", f"Bearer {KEY}x".encode())],
    [(b"authorization", f"Bearer {KEY[:-1]}".encode())],
    [(b"x-api-key", b"*")],
    [(b"api-key", b"k" * 6000)],
    [(b"authorization", "Bearer schlüssel".encode())],
]


async def asked_with(client: RawClient, headers: list[Header]) -> tuple[int, bytes]:
    client.send(request_bytes(headers=headers, body=b'{"model":"llama"}'))
    answer = await client.answer()
    return answer.status, answer.body


async def test_only_a_right_key_opens_the_door() -> None:
    """Everything else is one and the same 401. No key is passed on, none is written down."""
    async with (
        fleet(answers_at_once, keys=[f"ada:{KEY}"], log_level="debug") as running,
        running.crew() as [[client]],
    ):
        refused = {await asked_with(client, headers) for headers in WRONG}
        client.send(request_bytes(b"/v1/chat/completions?api_key=" + KEY.encode(), body=b"{}"))
        in_the_query = await client.answer()
        twice = await asked_with(client, [BEARER, (b"x-api-key", b"another")])
        reached = len(running.engine.requests)
        let_in = [
            (await asked_with(client, [(name, value)]))[0]
            for name, value in (BEARER, (b"x-api-key", KEY.encode()), (b"api-key", KEY.encode()))
        ]

    [(status, body)] = refused
    assert status == 401
    assert (in_the_query.status, in_the_query.body) == (401, body)
    assert twice[0] == 400
    assert reached == 0
    assert let_in == [200] * 3
    passed_on = b"".join(request.raw + request.body for request in running.engine.requests)
    assert KEY.encode() not in passed_on
    assert "completed" in running.log and KEY not in running.log


async def test_a_key_may_be_issued_and_revoked_while_the_proxy_runs(
    fresh_redis: RedisServer,
) -> None:
    """Every worker follows within 5 seconds; an answer that has begun is finished."""
    finish = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if b'"stream"' not in (await exchange.request()).body:
            exchange.json(ANSWER)
            return
        exchange.begin()
        exchange.chunk(CHAT.events[0])
        await finish.wait()
        exchange.chunk(b"".join((*CHAT.events[1:], *CHAT.terminal)))
        exchange.end()

    async with (
        aclosing(RedisStore(place(fresh_redis.url), patience=WITHIN)) as store,
        fleet(script, keys=[f"ada:{KEY}"], store=fresh_redis.url, workers=4) as running,
        running.crew(2) as crew,
    ):
        issued = IssuedKeys(store)
        clients = [several[0] for several in crew]
        assert [(await ask(each, KEY)).status for each in clients] == [200] * 4
        new = (await issued.create("bob")).secret
        took_in = await changed(clients, new, to=200)
        streaming = crew[0][1]
        streaming.send(question(new, stream=True))
        assert (await streaming.head()).status == 200

        await issued.revoke("bob")
        took_out = await changed(clients, new, to=401)
        finish.set()
        streamed = [chunk async for chunk in streaming.chunks()]

    assert max(took_in, took_out) < WITHIN
    assert streaming.complete and b"[DONE]" in b"".join(streamed)
    assert new not in running.log


async def changed(clients: list[RawClient], key: str, *, to: int) -> float:
    """Ask until every worker answers like this; return how many seconds that took."""
    began = time.monotonic()
    for client in clients:
        while (await ask(client, key)).status != to:
            assert time.monotonic() - began < 2 * WITHIN
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_a_file_of_keys_is_followed(tmp_path: Path) -> None:
    """A new key is let in and the old one is not. A file with a fault in it changes nothing."""
    file = tmp_path / "keys"
    file.write_text("# ours\nada:first-secret-1\n")
    async with (
        fleet(answers_at_once, keys=[f"file:{file}"]) as running,
        running.crew() as [[client]],
    ):
        assert (await ask(client, "first-secret-1")).status == 200
        file.write_text("bob:second-secret-2\n")
        assert await changed([client], "second-secret-2", to=200) < WITHIN
        assert (await ask(client, "first-secret-1")).status == 401

        file.write_text("bob:third-secret-3;limits=lots\n")
        await complained(running, client)
        assert (await ask(client, "second-secret-2")).status == 200
        assert (await ask(client, "third-secret-3")).status == 401

    assert "-secret-" not in running.log


async def complained(running: Fleet, client: RawClient) -> None:
    """Ask until the log tells of the fault: who is not asked does not look at the file."""
    async with asyncio.timeout(2 * WITHIN):
        while "not taken over" not in running.log:
            await ask(client, "second-secret-2")
            await asyncio.sleep(0.05)

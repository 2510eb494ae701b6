"""What a client sees of a stream whose server says little and then no more: nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmproxy.protocol.comments import KEEP_ALIVE
from tests.support.fleet import event, fleet, speaking, text_of
from tests.support.outside import at_rest, chat, until
from tests.support.rig import Rig
from tests.support.upstream import Exchange, Request

ROLE = event({"role": "assistant", "content": ""})


def attempts_of(proxy: Rig, server: str) -> dict[str, float]:
    """Return what the attempts on a server were counted as."""
    results = ("ok", "cancelled", "upstream_timeout", "upstream_error")
    counted = {
        result: proxy.sample("upstream_attempts_total", upstream=server, result=result)
        for result in results
    }
    return {result: count for result, count in counted.items() if count}


async def test_who_leaves_before_the_first_token_has_cancelled() -> None:
    """That was not the server's fault, and not our clock."""

    async def slow(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(ROLE)
        await exchange.closed()

    async with fleet(slow, speaking("Hello"), first_token_limit=30) as (proxy, (a, _)):
        async with proxy.client() as client:
            client.send(chat(stream=True))
            await until(lambda: a.asked, "the first was asked")
        await at_rest(proxy)

        assert attempts_of(proxy, "a") == {"cancelled": 1}


@pytest.mark.parametrize(
    "settings",
    [{}, {"rescue": "off"}, {"keepalive_comments": 0.05}],
    ids=["kept", "not", "comment"],
)
async def test_a_role_is_no_first_token(settings: dict[str, Any]) -> None:
    """What comes before the token is held back: the client gets one role, of who answers."""

    async def slow(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(ROLE)
        for _ in range(50):
            await asyncio.sleep(0)
        if "keepalive_comments" not in settings:
            exchange.chunk(b": ping\n\n" + ROLE[:20])
        await exchange.closed()

    async with fleet(slow, speaking("Hello"), first_token_limit=0.3, **settings) as (proxy, (a, _)):
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert text_of(answer.body) == "Hello"
        assert answer.body.count(b'"role"') == 1
        assert len(a.asked) == 1
        assert (await proxy.log.line())["upstream"] == "b"
        assert attempts_of(proxy, "a") == {"upstream_timeout": 1}
        commented = answer.body.startswith(KEEP_ALIVE)  # the head went out with that
        assert commented is ("keepalive_comments" in settings)
        assert answer.header(b"x-llmproxy-upstream") == (b"a" if commented else b"b")
        await at_rest(proxy)


FIRST = [
    pytest.param(event({"content": "Hello"}), id="text"),
    pytest.param(event({"reasoning_content": "Hm"}), id="reasoning"),
    pytest.param(event({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}), id="tool"),
    pytest.param(event({}, "stop"), id="finish"),
]


@pytest.mark.parametrize("rescue", ["same_model", "off"])
@pytest.mark.parametrize("first", FIRST)
async def test_after_the_first_token_there_is_time(first: bytes, rescue: str) -> None:
    """The limit is for the first; the role that was held back goes before it."""
    go_on = asyncio.Event()

    async def answering(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(ROLE)
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.chunk(first)
        await go_on.wait()
        exchange.chunk(event({}, "stop") + b"data: [DONE]\n\n")
        exchange.end()

    async with fleet(
        answering, answering, first_token_limit=0.3, timeout_idle=5, rescue=rescue
    ) as (proxy, (a, b)):
        async with proxy.client() as client:
            client.send(chat(stream=True))
            await client.until(first)
            await asyncio.sleep(0.6)  # twice the limit
            go_on.set()
            await client.until(b"[DONE]")

        assert (len(a.asked), len(b.asked)) == (1, 0)
        await at_rest(proxy)


async def test_an_answer_that_ends_without_a_token_is_an_answer() -> None:
    """Nothing more will come of it."""

    async def short(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(ROLE + b"data: [DONE]\n\n")
        exchange.end()

    async with fleet(short, speaking("Hello"), first_token_limit=1) as (proxy, (_, b)):
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert answer.body == ROLE + b"data: [DONE]\n\n"
        assert not b.asked


def _says_error(exchange: Exchange) -> None:
    exchange.chunk(b'data: {"error": {"message": "out of memory"}}\n\n')
    exchange.chunk(b"data: [DONE]\n\n")
    exchange.end()


def _says_half(exchange: Exchange) -> None:
    exchange.chunk(ROLE[:30])
    exchange.close()


@pytest.mark.parametrize("how", [_says_error, _says_half])
async def test_the_head_names_who_answers(how: Callable[[Exchange], None]) -> None:
    """Of who began, the client has nothing: neither a byte nor the name."""

    async def begins(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        how(exchange)
        await exchange.closed()

    async with fleet(begins, speaking("Hello")) as (proxy, _):
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert text_of(answer.body) == "Hello"
        assert answer.header(b"x-llmproxy-upstream") == b"b"
        assert answer.header(b"x-llmproxy-attempts") == b"2"
        assert (await proxy.log.line())["upstream"] == "b"


async def test_who_takes_the_place_of_a_stream_may_answer_otherwise() -> None:
    """Nothing is out that it would have to be like."""

    async def begins(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        _says_half(exchange)
        await exchange.closed()

    async def json(exchange: Exchange, request: Request) -> None:
        exchange.json({"text": "Hello"})

    async with fleet(begins, json) as (proxy, _):
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert answer.body == b'{"text":"Hello"}'
        assert answer.header(b"content-type") == b"application/json"
        assert answer.header(b"x-llmproxy-upstream") == b"b"


@pytest.mark.parametrize("how", [_says_error, _says_half])
async def test_where_all_fail_without_a_word_the_status_says_so(
    how: Callable[[Exchange], None],
) -> None:
    """Nothing was passed on, so that nothing has to be ended."""

    async def begins(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        how(exchange)
        await exchange.closed()

    async with fleet(begins, begins) as (proxy, _):
        answer, whole = await proxy.asked(chat(stream=True))

        assert whole
        assert answer.status == 502
        assert answer.header(b"x-should-retry") == b"false"
        await at_rest(proxy)


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("cut", [30, ROLE.index(b':"chat-1"')], ids=["anywhere", "at_a_colon"])
async def test_half_an_event_is_passed_on_with_its_other_half(cut: int, limit: float) -> None:
    """The head waits for it; and what begins with a colon is no comment, inside an event."""
    go_on = asyncio.Event()

    async def halves(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(ROLE[:cut])
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.chunk(ROLE[cut:])
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.chunk(event({"content": "Hello"}))
        await go_on.wait()
        exchange.chunk(event({}, "stop") + b"data: [DONE]\n\n")
        exchange.end()

    async with (
        fleet(halves, speaking("Hello"), first_token_limit=limit) as (proxy, _),
        proxy.client() as client,
    ):
        client.send(chat(stream=True))
        begun = await client.until(event({"content": "Hello"}))
        assert ROLE in begun
        go_on.set()
        await client.until(b"[DONE]")

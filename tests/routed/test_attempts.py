"""What a client sees when servers fail before the first byte of an answer."""

import asyncio

import orjson
import pytest

from tests.support.client import Answer, request_bytes
from tests.support.fleet import (
    Answering,
    Member,
    asked_for,
    dropping,
    event,
    failing,
    fleet,
    silent,
    speaking,
    text_of,
)
from tests.support.outside import routing_of, server_named, until
from tests.support.ports import free_port
from tests.support.upstream import Exchange, Request

PATH = b"/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**changed: object) -> bytes:
    """Return a chat request."""
    return request_bytes(PATH, body=orjson.dumps({**BODY, **changed}))


def telling(said: object) -> Answering:
    """Return a server that answers with this JSON."""

    async def answer(exchange: Exchange, request: Request) -> None:
        exchange.json(said)

    return answer


def said(answer: Answer) -> str:
    """Return the text of an answer that was not streamed."""
    text: str = orjson.loads(answer.body)["choices"][0]["message"]["content"]
    return text


def code_of(answer: Answer) -> str:
    code: str = orjson.loads(answer.body)["error"]["code"]
    return code


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(failing(b"500 Internal Server Error"), id="500"),
        pytest.param(failing(b"503 Service Unavailable"), id="503"),
        pytest.param(failing(b"429 Too Many Requests"), id="429"),
        pytest.param(failing(b"401 Unauthorized"), id="our_key_refused"),
        pytest.param(dropping, id="reset"),
    ],
)
async def test_another_server_answers(first: Answering, stream: bool) -> None:
    """The client sees a good answer, and how many attempts it took."""
    async with fleet(first, speaking("Hello there")) as (proxy, (a, b)):
        answer = await proxy.ask(chat(stream=stream))

        assert answer.status == 200
        assert (text_of(answer.body) if stream else said(answer)) == "Hello there"
        assert answer.header(b"x-llmproxy-attempts") == b"2"
        assert answer.header(b"x-llmproxy-upstream") == b"b"
        assert (len(a.asked), len(b.asked)) == (1, 1)


async def test_a_server_that_cannot_be_reached_costs_one_attempt() -> None:
    """Whatever was asked for: it has not seen it."""
    nowhere = Member(silent, url=f"http://127.0.0.1:{free_port()}")
    async with fleet(nowhere, speaking("Hello")) as (proxy, _):
        answer = await proxy.ask(chat())

        assert (answer.status, said(answer)) == (200, "Hello")
        assert answer.header(b"x-llmproxy-attempts") == b"2"


async def test_a_silent_server_is_left_for_another() -> None:
    """Once, and the first is closed."""
    async with fleet(silent, speaking("Hello"), timeout_answer=0.2) as (proxy, (a, b)):
        answer = await proxy.ask(chat())

        assert (answer.status, said(answer)) == (200, "Hello")
        assert (len(a.asked), len(b.asked)) == (1, 1)


async def test_a_late_first_token_is_looked_for_elsewhere() -> None:
    """Headers alone, and comments, count as nothing."""

    async def slow(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(b": ping\n\n")
        await exchange.closed()

    async with fleet(slow, speaking("Hello"), first_token_limit=0.2) as (proxy, (a, _)):
        answer = await proxy.ask(chat(stream=True))

        assert text_of(answer.body) == "Hello"
        assert answer.body.startswith(b": ping\n\n")
        assert len(a.asked) == 1


async def test_nobody_else_to_ask_is_worth_the_wait() -> None:
    """The limit is for looking elsewhere, not for giving up."""
    go_on = asyncio.Event()

    async def slow(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        await go_on.wait()
        exchange.chunk(event({"content": "Hello"}, "stop"))
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.end()

    async with fleet(slow, first_token_limit=0.05) as (proxy, (a,)):
        asking = asyncio.create_task(proxy.ask(chat(stream=True)))
        assert a.server is not None
        await a.server.reached()
        await asyncio.sleep(0.15)  # three times the limit: it would have been over by now
        go_on.set()
        answer = await asking

        assert text_of(answer.body) == "Hello"


async def test_when_all_fail_the_first_error_of_an_engine_is_told() -> None:
    """Its own words, and that the proxy has tried enough."""
    errors = [
        failing(b"500 Internal Server Error", body={"error": {"message": name}})
        for name in ("first", "second", "third")
    ]
    async with fleet(*errors) as (proxy, members):
        answer = await proxy.ask(chat())

        assert answer.status == 500
        assert orjson.loads(answer.body) == {"error": {"message": "first"}}
        assert answer.header(b"x-should-retry") == b"false"
        assert answer.header(b"x-llmproxy-attempts") == b"3"
        assert [len(each.asked) for each in members] == [1, 1, 1]


async def test_one_server_is_asked_twice_at_most() -> None:
    """Also when it is the only one."""
    async with fleet(failing(b"500 Internal Server Error"), retries=5) as (proxy, (a,)):
        answer = await proxy.ask(chat())

        assert answer.status == 500
        assert len(a.asked) == 2


async def test_a_short_retry_after_is_waited_out() -> None:
    """Nobody else is there, and the server has said when."""
    answers = iter([failing(b"429 Too Many Requests", headers=b"retry-after: 1\r\n")])

    async def busy_once(exchange: Exchange, request: Request) -> None:
        await next(answers, speaking("Hello"))(exchange, request)

    async with fleet(busy_once) as (proxy, (a,)):
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await proxy.ask(chat())

        assert (answer.status, said(answer)) == (200, "Hello")
        assert loop.time() - began >= 1.0
        assert len(a.asked) == 2


async def test_a_429_that_stays_is_passed_on_with_its_header() -> None:
    """A client can wait longer than we do."""
    busy = failing(b"429 Too Many Requests", headers=b"retry-after: 60\r\n")
    async with fleet(busy, busy) as (proxy, _):
        answer = await proxy.ask(chat())

        assert answer.status == 429
        assert answer.header(b"retry-after") == b"60"


@pytest.mark.parametrize("status", [b"400 Bad Request", b"404 Not Found", b"422 Unprocessable"])
async def test_what_is_wrong_with_the_request_is_told_at_once(status: bytes) -> None:
    """Unchanged, by the first server."""
    async with fleet(failing(status), speaking("never")) as (proxy, (a, b)):
        answer = await proxy.ask(chat())

        assert answer.status == int(status[:3])
        assert code_of(answer) == "engine_said"
        assert answer.header(b"x-should-retry") is None
        assert (len(a.asked), len(b.asked)) == (1, 0)
        assert proxy.sample("breaker_state", upstream="a") == 0


async def test_a_prompt_that_is_too_long_goes_to_the_model_for_long_ones() -> None:
    """And nowhere else, and the body is the caller's but for the model."""
    message = "This model's maximum context length is 4096 tokens."
    too_long = failing(b"400 Bad Request", body={"error": {"message": message}})
    async with fleet(
        Member(too_long), Member(speaking("Hello"), models=("long",)), fallbacks="context:m=long"
    ) as (proxy, (a, b)):
        answer = await proxy.ask(chat(temperature=0))

        assert (answer.status, said(answer)) == (200, "Hello")
        assert asked_for(b.asked[0]) == {**BODY, "model": "long", "temperature": 0}
        assert len(a.asked) == 1


async def test_the_last_attempt_is_made_with_the_fallback() -> None:
    """Its name is in the answer, and the attempts in a header."""
    error = failing(b"500 Internal Server Error")
    async with fleet(
        Member(error),
        Member(error),
        Member(speaking("Hello", model="small"), models=("small",)),
        fallbacks="m=small",
    ) as (proxy, members):
        answer = await proxy.ask(chat())

        assert orjson.loads(answer.body)["model"] == "small"
        assert answer.header(b"x-llmproxy-attempts") == b"3"
        assert [len(each.asked) for each in members] == [1, 1, 1]


async def test_a_fallback_is_charged_and_told_of_as_what_it_is() -> None:
    """Its price is charged, its tokens are counted under its name, and the log line names it."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}
    small = {"object": "chat.completion", "model": "small", "choices": [], "usage": usage}
    async with fleet(
        Member(failing(b"500 Internal Server Error"), options=";models=m"),
        Member(telling(small), options=";models=small"),
        fallbacks="m=small",
        middleware="rate_limit,routing",
        budget="3 usd/day",
        prices="m=1:1,small=1000:1000",
    ) as (proxy, _):
        answers = [await proxy.ask(chat()) for _ in range(3)]
        line = await proxy.log.line(1)

        assert [answer.status for answer in answers] == [200, 200, 429]
        assert proxy.sample("tokens_total", model="small", kind="completion") == 2000
        assert (line["model"], line["answering_model"]) == ("m", "small")


@pytest.mark.parametrize(("store", "servers"), [(True, 1), (False, 2)], ids=["kept", "unkept"])
async def test_what_may_have_been_done_is_not_done_again(store: bool, servers: int) -> None:
    """A response that its server keeps is made once; one that it does not may be made elsewhere."""
    async with fleet(dropping, dropping) as (proxy, members):
        body = orjson.dumps({"model": "m", "input": "hi", "store": store})
        answer = await proxy.ask(request_bytes(b"/v1/responses", body=body))

        assert answer.status == 502
        assert sum(bool(each.asked) for each in members) == servers


async def test_an_alias_stands_for_a_model() -> None:
    """The engine is asked for its own name, in the caller's own bytes."""
    raw = b'{ "messages": [], "model" : "gpt-4o", "seed": 1e2 }'
    async with fleet(speaking("Hello"), aliases="gpt-4o=m") as (proxy, (a,)):
        answer = await proxy.ask(request_bytes(PATH, body=raw))

        assert answer.status == 200
        assert a.asked[0].body == raw.replace(b"gpt-4o", b"m")


async def test_a_model_that_nobody_has_is_not_found() -> None:
    """After every server was asked whether it has it by now."""
    async with fleet(speaking("never"), speaking("never")) as (proxy, (a, b)):
        await proxy.ask(request_bytes(b"/v1/models", method=b"GET"))
        answer = await proxy.ask(chat(model="other"))

        assert (answer.status, code_of(answer)) == (404, "model_not_found")
        assert not a.asked
        assert not b.asked


async def test_the_models_of_all_servers_are_one_list() -> None:
    """With the aliases; one of them may be asked for alone."""
    async with fleet(
        Member(speaking(""), models=("m", "org/x")),
        Member(speaking(""), models=("m", "y")),
        aliases="gpt-4o=m",
    ) as (proxy, _):
        listed = await proxy.ask(request_bytes(b"/v1/models", method=b"GET"))
        names = [each["id"] for each in orjson.loads(listed.body)["data"]]
        one = await proxy.ask(request_bytes(b"/v1/models/org%2Fx", method=b"GET"))
        none = await proxy.ask(request_bytes(b"/v1/models/z", method=b"GET"))

        assert sorted(names) == ["gpt-4o", "m", "org/x", "y"]
        assert orjson.loads(one.body)["id"] == "org/x"
        assert (none.status, code_of(none)) == (404, "model_not_found")


async def test_a_full_server_is_waited_for() -> None:
    """In the order of arrival, and not longer than a request may wait."""
    go_on = asyncio.Event()

    async def slow(exchange: Exchange, request: Request) -> None:
        await go_on.wait()
        await speaking("Hello")(exchange, request)

    async with fleet(Member(slow, options=";max_inflight=1"), queue_timeout=0.3) as (proxy, (a,)):
        first = asyncio.create_task(proxy.ask(chat()))
        assert a.server is not None
        await a.server.reached()
        late = await proxy.ask(chat())
        assert (late.status, code_of(late)) == (503, "overloaded")
        second = asyncio.create_task(proxy.ask(chat()))
        await asyncio.sleep(0)
        go_on.set()

        assert [(await each).status for each in (first, second)] == [200, 200]


async def test_who_waits_for_a_server_that_went_away_and_came_back_is_served() -> None:
    """Also when nothing of its was at work meanwhile, so that nobody could call the next one."""
    go_on = asyncio.Event()

    async def slow(exchange: Exchange, request: Request) -> None:
        await go_on.wait()
        await speaking("Hello")(exchange, request)

    limited = Member(slow, options=";max_inflight=1;models=m")
    other = Member(speaking("other"), options=";models=x")
    async with fleet(limited, other, queue_timeout=8) as (proxy, (a, _)):
        crowd = [asyncio.create_task(proxy.ask(chat())) for _ in range(4)]
        assert a.server is not None
        await a.server.reached()
        server = server_named(proxy, "a")
        await until(lambda: routing_of(proxy).means.places.waiting == 3, "three wait")
        server.draining = True
        go_on.set()
        await until(lambda: server.inflight == 0, "the first is over")
        server.draining = False
        late = asyncio.create_task(proxy.ask(chat()))

        statuses = sorted([(await each).status for each in (*crowd, late)])
        assert statuses[:2] == [200, 200]  # the first, and whoever came after the return
        assert set(statuses) <= {200, 503}

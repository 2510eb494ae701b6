"""Requests that routing sees rarely: uploads, other methods, short deadlines, callers who leave."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import llmproxy
from llmproxy.settings import Settings
from tests.support.client import raw_client, request_bytes
from tests.support.fleet import (
    Answering,
    Member,
    asked_for,
    breaking,
    dropping,
    event,
    failing,
    fleet,
    silent,
    speaking,
    text_of,
)
from tests.support.outside import (
    BEGUN,
    PATH,
    TEXT,
    at_rest,
    chat,
    error_of,
    half_open,
    in_order,
    said,
    server_named,
    until,
)
from tests.support.ports import free_port
from tests.support.rig import Rig, served_here
from tests.support.streams import NDJSON, judge
from tests.support.upstream import Exchange, Request, scripted
from tests.transport.test_clocks import full_backlog


def _reset(exchange: Exchange) -> None:
    exchange.reset()


MODELS = request_bytes(b"/v1/models", method=b"GET", body=None)

# Callers who leave


async def _leave(proxy: Rig, when: Callable[[], object], request: bytes) -> None:
    """Ask, and hang up as soon as a condition holds."""
    async with proxy.client() as client:
        client.send(request)
        await until(when, "the moment to leave came")
    line = await proxy.log.line(len(proxy.log.lines) + 1 if not proxy.log.lines else 1)
    assert line["outcome"] == "client_gone"


async def test_a_caller_who_leaves_while_another_server_goes_on() -> None:
    """The one that goes on is told at once, and what was kept is given back."""
    async with fleet(breaking(BEGUN, _reset), silent) as (proxy, (_, b)):
        await _leave(proxy, lambda: b.asked, chat(stream=True))

        assert b.server is not None
        await b.server.exchanges[-1].closed()
        await at_rest(proxy)
        assert proxy.sample("rescues_total", result="cancelled") == 1


async def test_a_caller_who_leaves_while_it_is_waited_for_a_server() -> None:
    """Nobody is asked for somebody who has gone, and the one probe is another's to make."""
    busy = failing(b"429 Too Many Requests", headers=b"retry-after: 5\r\n")
    async with fleet(busy) as (proxy, (a,)):
        await _leave(proxy, lambda: a.asked and not server_named(proxy, "a").inflight, chat())

        await at_rest(proxy)
        assert len(a.asked) == 1


async def test_a_caller_who_leaves_while_it_finds_out_about_a_server() -> None:
    """The probe is given back, and says nothing."""
    async with fleet(silent) as (proxy, (a,)):
        await proxy.ask(MODELS)
        proxy.log.lines.clear()
        half_open(server_named(proxy, "a"))
        await _leave(proxy, lambda: a.asked, chat())

        await at_rest(proxy)
        assert server_named(proxy, "a").breaker.state == "half-open"


async def test_a_caller_who_leaves_while_every_server_is_full() -> None:
    """Its place in the row is the next one's."""
    go_on = asyncio.Event()

    async def slow(exchange: Exchange, request: Request) -> None:
        await go_on.wait()
        await speaking(TEXT)(exchange, request)

    # One of the two has no limit, so that nobody but routing has a row.
    async with fleet(Member(slow, options=";max_inflight=1"), Member(slow, models=("x",))) as (
        proxy,
        (a, _),
    ):
        first = asyncio.create_task(proxy.ask(chat()))
        await until(lambda: a.asked, "the first was asked for")
        async with proxy.client() as client:
            client.send(chat())
            await until(lambda: proxy.sample("inflight_requests") == 2, "the second waits")
            third = asyncio.create_task(proxy.ask(chat()))
            await until(lambda: proxy.sample("inflight_requests") == 3, "the third waits")
        assert (await proxy.log.line())["outcome"] == "client_gone"
        go_on.set()

        assert [(await each).status for each in (first, third)] == [200, 200]
        assert len(a.asked) == 2
        await at_rest(proxy)


# Deadlines


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", [silent, dropping], ids=["silent", "dropping"])
async def test_a_deadline_of_the_caller_says_nothing_of_the_servers(
    first: Answering, stream: bool
) -> None:
    """However often it passes, the breakers stay as they were."""
    async with fleet(in_order(first, silent), silent) as (proxy, members):
        headers = [(b"x-llmproxy-timeout", b"0.15")]
        answers = await asyncio.gather(
            *(proxy.ask(chat(stream=stream, headers=headers)) for _ in range(24))
        )

        # The first failure is what is told.
        assert {answer.status for answer in answers} <= {504, 502 if first is dropping else 504}
        await at_rest(proxy)
        for name in ("a", "b"):
            assert server_named(proxy, name).breaker.state == "closed"
            dropped = first is dropping and name == "a"
            assert server_named(proxy, name).breaker.has_failed is dropped
        total = sum(len(each.asked) for each in members)
        assert total <= 24 + (first is dropping) * 2


async def test_a_deadline_in_mid_stream_says_nothing_of_the_server() -> None:
    """The stream ends in its error, and nobody is asked to go on: the time is over."""
    lingers = breaking(BEGUN, lambda exchange: None)
    async with fleet(lingers, lingers) as (proxy, members):
        headers = [(b"x-llmproxy-timeout", b"0.3")]
        answer, whole = await proxy.asked(chat(stream=True, headers=headers))

        assert not whole
        assert error_of(answer)["code"] == "upstream_timeout"
        assert sum(len(each.asked) for each in members) == 1
        assert not any(server_named(proxy, name).breaker.has_failed for name in "ab")


async def test_a_header_that_is_wrong_does_not_keep_the_one_probe() -> None:
    """What the caller got wrong is found out about before a server is asked."""
    member = Member(speaking(TEXT))
    async with fleet(member, preset="vllm") as (proxy, _):
        assert (await proxy.ask(chat())).status == 200
        server = server_named(proxy, "a")
        half_open(server)
        answer = await proxy.ask(chat(headers=[(b"x-llmproxy-priority", b"high")]))
        assert answer.status in (200, 400)
        await at_rest(proxy)
        assert said(await proxy.ask(chat())) == TEXT
        assert server.breaker.state == "closed"


# Other methods


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/models/m"])
async def test_the_list_of_models_by_either_method(method: bytes, path: bytes) -> None:
    """The same head, and for HEAD nothing behind it."""
    async with fleet(speaking(TEXT), speaking(TEXT)) as (proxy, _), proxy.client() as client:
        for _ in range(2):  # on one connection: what is too much would be seen in the second
            client.send(request_bytes(path, method=method, body=None))
            answer = await client.answer(to=method)
            assert answer.status == 200
            assert client.complete
            assert int(answer.header(b"content-length") or 0) > 10
            assert bool(answer.body) is (method == b"GET")


@pytest.mark.parametrize("fault", [failing(b"500 Internal Server Error"), dropping])
async def test_a_get_is_tried_elsewhere(fault: Answering) -> None:
    """Looking at something changes nothing, whatever it is."""

    async def file(exchange: Exchange, request: Request) -> None:
        assert request.target == b"/v1/files/x"
        exchange.json({"id": "x"})

    async with fleet(fault, file) as (proxy, (a, b)):
        answer = await proxy.ask(request_bytes(b"/v1/files/x", method=b"GET", body=None))

        assert (answer.status, answer.body) == (200, b'{"id":"x"}')
        assert (len(a.asked), len(b.asked)) == (1, 1)


# Uploads

FORM = [(b"content-type", b'multipart/form-data; boundary="b"')]


def form(model: str | None, *, headers: Any = FORM) -> bytes:
    """Return a form with a file of some size behind its model."""
    field = (
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % model.encode()
        if model
        else b""
    )
    file = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--b--\r\n'
    )
    body = field + file % (b"x" * 3000)
    return request_bytes(b"/v1/audio/transcriptions", headers=headers, body=body)


async def heard(exchange: Exchange, request: Request) -> None:
    exchange.json({"text": "heard"})


async def test_an_upload_of_which_nothing_was_read_goes_elsewhere() -> None:
    """No connection came about, so it is as it was."""
    nowhere = Member(silent, url=f"http://127.0.0.1:{free_port()}")
    async with fleet(nowhere, heard) as (proxy, (_, b)):
        answer = await proxy.ask(form("m"))

        assert (answer.status, answer.body) == (200, b'{"text":"heard"}')
        assert b.asked[0].body == form("m").partition(b"\r\n\r\n")[2]
        await at_rest(proxy)


async def test_servers_that_take_no_connection_have_not_seen_the_request() -> None:
    """An upload goes on to the third, and so does everything else; it is no silence of theirs."""
    async with full_backlog() as one, full_backlog() as two:
        lost = [Member(silent, url=f"http://{each.host}:{each.port}") for each in (one, two)]
        third = Member(in_order(heard, speaking(TEXT)))
        async with fleet(*lost, third, timeout_connect=0.5) as (proxy, _):
            answer = await proxy.ask(form("m"))
            assert (answer.status, answer.body) == (200, b'{"text":"heard"}')
            answer = await proxy.ask(chat(stream=True))
            assert (answer.status, said(answer)) == (200, TEXT)
            await at_rest(proxy)


@pytest.mark.parametrize("fault", [failing(b"503 Service Unavailable"), dropping])
async def test_an_upload_that_was_read_goes_nowhere_else(fault: Answering) -> None:
    """It cannot be read again: the client is told, once."""
    async with fleet(fault, heard) as (proxy, (a, b)):
        answer = await proxy.ask(form("m"))

        assert answer.status in (502, 503)
        assert (len(a.asked), len(b.asked)) == (1, 0)
        await at_rest(proxy)


@pytest.mark.parametrize("how", ["counted", "chunked"])
async def test_an_alias_in_a_form_is_an_alias(how: str) -> None:
    """The engine gets its own name; every other byte is the caller's."""
    length = [] if how == "counted" else [(b"transfer-encoding", b"chunked")]
    async with fleet(Member(heard, models=("whisper",)), aliases="stt=whisper") as (proxy, (a,)):
        request = form("stt")
        if how == "chunked":
            whole = form("stt").partition(b"\r\n\r\n")[2]
            cut = [whole[:70], whole[70:90], whole[90:]]
            request = form("stt", headers=[*FORM, *length]).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            request += b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in cut)
            request += b"0\r\n\r\n"
        answer = await proxy.ask(request)

        assert answer.status == 200
        assert a.asked[0].body == form("whisper").partition(b"\r\n\r\n")[2]


# Errors that are odd


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [b"500 Internal Server Error", b"400 Bad Request"])
@pytest.mark.parametrize("size", [10, 200_000])
async def test_an_error_that_does_not_end(stream: bool, status: bytes, size: int) -> None:
    """What was held back is nobody's; what was begun is cut."""

    async def stalls(exchange: Exchange, request: Request) -> None:
        exchange.begin(status, b"application/json")
        exchange.chunk(b"x" * size)
        await exchange.closed()

    async with fleet(stalls, speaking(TEXT), timeout_idle=0.2) as (proxy, (_, b)):
        answer, whole = await proxy.asked(chat(stream=stream))

        if size < 64 * 1024 or status.startswith(b"5"):
            assert (answer.status, said(answer)) == (200, TEXT)
        else:
            assert answer.status == 400
            assert not whole
            assert len(answer.body) == size
            assert not b.asked
        await at_rest(proxy)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [b"500 Internal Server Error", b"400 Bad Request"])
async def test_an_error_that_is_too_long_to_be_kept(stream: bool, status: bytes) -> None:
    """A server that failed is replaced by another, whatever it says; a refusal is passed on."""
    body = {"error": {"message": "t" * 300_000}}
    async with fleet(failing(status, body=body), speaking(TEXT)) as (proxy, (a, b)):
        answer, whole = await proxy.asked(chat(stream=stream))

        assert whole
        if status.startswith(b"5"):
            assert (answer.status, said(answer)) == (200, TEXT)
            assert (len(a.asked), len(b.asked)) == (1, 1)
        else:
            assert (answer.status, orjson.loads(answer.body)) == (400, body)
            assert not b.asked
        await at_rest(proxy)


async def test_an_error_that_is_too_long_with_nobody_else_to_ask() -> None:
    """Its status is told, and that it failed."""
    long = failing(b"500 Internal Server Error", body={"error": {"message": "t" * 300_000}})
    async with fleet(long) as (proxy, (a,)):
        answer, whole = await proxy.asked(chat())

        assert (answer.status, whole) == (502, True)
        assert b"status 500" in answer.body
        assert len(a.asked) == 2
        await at_rest(proxy)


FULL = {"error": {"message": "The request queue is full."}}


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(failing(b"429 Too Many Requests"), id="429"),
        pytest.param(failing(b"503 Service Unavailable", body=FULL), id="queue_full"),
    ],
)
@pytest.mark.parametrize("store", [True, False])
async def test_a_busy_server_is_no_broken_server(busy: Answering, store: bool) -> None:
    """Also for a request that is not made a second time."""
    body = orjson.dumps({"model": "m", "input": "hi", "store": store})
    request = request_bytes(b"/v1/responses", body=body)
    left, all_asked = 30, asyncio.Event()

    async def together(exchange: Exchange, request: Request) -> None:
        """Answer nobody before everybody has asked: who came later would find both at rest."""
        nonlocal left
        left -= 1
        if not left:
            all_asked.set()
        await all_asked.wait()
        await busy(exchange, request)

    async with fleet(together, together, retries=0) as (proxy, members):
        answers = await asyncio.gather(*(proxy.ask(request) for _ in range(30)))

        assert {answer.status for answer in answers} <= {429, 503}
        assert {error_of(answer)["message"] for answer in answers} <= {
            "it failed",
            "The request queue is full.",
        }
        assert sum(len(each.asked) for each in members) == 30
        assert not any(server_named(proxy, name).breaker.has_failed for name in "ab")


async def test_a_fallback_that_is_down_does_not_end_the_search() -> None:
    """The last attempt belongs to it, unless it cannot be asked: then to a server of the model."""
    error = failing(b"500 Internal Server Error")
    fallback = Member(speaking("never"), options=";models=f")
    async with fleet(error, error, speaking(TEXT), fallback, fallbacks="m=f") as (proxy, members):
        await proxy.ask(MODELS)
        down = server_named(proxy, "d")
        for _ in range(5):
            down.breaker.failed(probe=False, refused=True)
        answer = await proxy.ask(chat())

        assert (answer.status, said(answer)) == (200, TEXT)
        assert [len(each.asked) for each in members] == [1, 1, 1, 0]


# Other streams


@pytest.mark.parametrize("ends", [True, False])
async def test_ollamas_own_streams(ends: bool) -> None:
    """They pass line by line; one that breaks ends in a line with the error."""

    async def lines(exchange: Exchange, request: Request) -> None:
        exchange.begin(content_type=NDJSON.content_type)
        for each in NDJSON.events + (NDJSON.terminal if ends else ()):
            exchange.chunk(each)
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.end() if ends else exchange.reset()

    async with fleet(lines, lines, preset="ollama") as (proxy, members):
        answer, whole = await proxy.asked(NDJSON.request)

        assert whole is ends
        posted = [each for member in members for each in member.asked if each.method == b"POST"]
        assert len(posted) == 1
        verdict = judge(NDJSON, answer.body)
        assert verdict.complete is ends
        assert (verdict.error is None) is ends
        await at_rest(proxy)


async def test_ollamas_own_streams_are_tried_elsewhere() -> None:
    """Where no connection came about."""

    async def lines(exchange: Exchange, request: Request) -> None:
        exchange.begin(content_type=NDJSON.content_type)
        for each in NDJSON.events + NDJSON.terminal:
            exchange.chunk(each)
        exchange.end()

    nowhere = Member(silent, url=f"http://127.0.0.1:{free_port()}")
    async with fleet(nowhere, lines, preset="ollama") as (proxy, _):
        answer, whole = await proxy.asked(NDJSON.request)

        assert whole
        assert judge(NDJSON, answer.body).complete


async def test_retries_do_not_need_rescue() -> None:
    """Off means that a stream which has begun ends where it breaks; before it is as ever."""
    async with fleet(in_order(dropping, breaking(BEGUN, _reset)), speaking(TEXT), rescue="off") as (
        proxy,
        (_, b),
    ):
        before = await proxy.ask(chat(stream=True))
        assert text_of(before.body) == TEXT
        after, whole = await proxy.asked(chat(stream=True))
        if len(b.asked) == 1:
            assert not whole
            assert error_of(after)["code"] == "upstream_error"


async def test_a_stream_that_is_longer_than_what_is_kept() -> None:
    """It passes whole; when it breaks it ends in one error event that a client can read."""
    long = "x" * 3000

    async def breaks(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        for _ in range(100):
            exchange.chunk(event({"content": long}))
        exchange.chunk(event({"content": long})[:200])
        await exchange.sent()
        await asyncio.sleep(0.1)
        exchange.reset()

    async with fleet(breaks, speaking(TEXT)) as (proxy, (_, b)):
        answer, whole = await proxy.asked(chat(stream=True))

        assert not whole
        assert answer.body.count(long.encode()) == 100
        assert error_of(answer)["code"] == "upstream_error"
        assert not b.asked
        assert proxy.sample("rescues_total", result="too_long") == 1
        await at_rest(proxy)


# Names of models


async def test_a_rule_names_a_model_where_the_caller_named_none() -> None:
    """It is put into a body that has none; what has no body stays as it is."""

    async def answer(exchange: Exchange, request: Request) -> None:
        exchange.json({"asked": request.body.decode()})

    key = "sk-of-ada-0123456789abcdef"
    bearer = [(b"authorization", b"Bearer " + key.encode())]
    async with fleet(
        answer,
        rules="tier:gold=m",
        middleware="auth,routing",
        auth="keys",
        keys=f"ada:{key};tier=gold",
    ) as (proxy, (a,)):
        messages = [{"role": "user", "content": "hi"}]
        body = orjson.dumps({"messages": messages})
        await proxy.ask(request_bytes(PATH, headers=bearer, body=body))
        assert asked_for(a.asked[0]) == {"messages": messages, "model": "m"}
        for method, path in ((b"GET", b"/v1/files"), (b"DELETE", b"/v1/files/x")):
            answered = await proxy.ask(
                request_bytes(path, method=method, headers=bearer, body=None)
            )
            assert answered.status == 200, answered.body
            assert a.asked[-1].body == b""
        answered = await proxy.ask(request_bytes(b"/v1/other", headers=bearer, body=b"[1, 2]"))
        assert (answered.status, a.asked[-1].body) == (200, b"[1, 2]")
        answered = await proxy.ask(form(None, headers=[*bearer, *FORM]))
        assert answered.status == 200


async def test_a_key_sees_the_models_that_it_may_use(tmp_path: Any) -> None:
    """Of the merged list, aliases included; and it may use an alias by that name."""
    ada, ben = "sk-of-ada-0123456789abcdef", "sk-of-ben-0123456789abcdef"
    async with fleet(
        Member(speaking(TEXT), models=("m", "other")),
        Member(speaking(TEXT), models=("m", "gpt-3")),
        aliases="gpt-4o=m, secret=other",
        middleware="auth,rate_limit,routing",
        auth="keys",
        keys=f"ada:{ada};models=gpt-*, ben:{ben}",
    ) as (proxy, _):

        def bearer(key: str) -> list[tuple[bytes, bytes]]:
            return [(b"authorization", b"Bearer " + key.encode())]

        async def names(key: str) -> list[str]:
            listed = await proxy.ask(
                request_bytes(b"/v1/models", method=b"GET", headers=bearer(key), body=None)
            )
            assert int(listed.header(b"content-length") or 0) == len(listed.body)
            return sorted(each["id"] for each in orjson.loads(listed.body)["data"])

        assert await names(ada) == ["gpt-3", "gpt-4o"]
        assert await names(ben) == ["gpt-3", "gpt-4o", "m", "other", "secret"]
        assert said(await proxy.ask(chat(model="gpt-4o", headers=bearer(ada)))) == TEXT
        refused = await proxy.ask(chat(model="m", headers=bearer(ada)))
        assert (refused.status, error_of(refused)["code"]) == (403, "model_not_allowed")
        one = await proxy.ask(
            request_bytes(b"/v1/models/other", method=b"GET", headers=bearer(ada), body=None)
        )
        assert one.status == 403


# Two of them, and the order of the layers


async def test_two_proxies_in_one_host_know_their_own_servers_only() -> None:
    """What one of them learns of a server is nothing to the other."""

    def member(text: str) -> Member:
        return Member(in_order(failing(b"500 Internal Server Error"), speaking(text)))

    async with AsyncExitStack() as stack:
        apps = []
        for name in ("one", "two"):
            servers = [await stack.enter_async_context(scripted(member(name).script)) for _ in "ab"]
            upstreams = ",".join(f"{n}={s.url}" for n, s in zip("ab", servers, strict=True))
            apps.append(
                llmproxy.create_app(
                    Settings(upstreams=upstreams, middleware="routing", routing="round_robin")
                )
            )
        host = Starlette(
            routes=[Mount(f"/{n}", a) for n, a in zip(("one", "two"), apps, strict=True)],
            lifespan=llmproxy.lifespan,
        )
        port = await stack.enter_async_context(served_here(host))
        for name in ("one", "two"):
            request = chat().replace(b" /v1", b" /%b/v1" % name.encode(), 1)
            async with raw_client(port=port) as client:
                client.send(request)
                answer = await client.answer()
                assert (answer.status, said(answer)) == (200, name)
                assert answer.header(b"x-llmproxy-attempts") == b"3"


@pytest.mark.parametrize("chain", ["rate_limit,routing", "routing"])
async def test_the_order_of_the_layers(chain: str) -> None:
    """One request is one request to the limits, whatever it took."""
    limits: Any = {"limits": "2 req/min"} if "rate_limit" in chain else {}
    async with fleet(
        failing(b"500 Internal Server Error"), speaking(TEXT), middleware=chain, **limits
    ) as (proxy, _):
        answers = [await proxy.ask(chat(stream=each)) for each in (False, True)]
        assert [said(each) for each in answers] == [TEXT, TEXT]
        third = await proxy.ask(chat())
        assert third.status == (429 if limits else 200)

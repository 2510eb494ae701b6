"""What a caller is told when the engine says no, says something odd, or says nothing."""

import asyncio
import json

import pytest

from llmproxy.records import Upstream
from tests.support.client import Answer, RawClient, request_bytes
from tests.support.ports import free_port
from tests.support.rig import Connection, Rig, proxied
from tests.support.upstream import Exchange, Script, answering, json_answer, scripted

ECHO = json_answer({"ok": True})


def code_of(answer: Answer) -> str:
    code: str = json.loads(answer.body)["error"]["code"]
    return code


async def silent(exchange: Exchange) -> None:
    await exchange.request()
    await exchange.closed()


async def asked(script: Script, request: bytes, **settings: object) -> tuple[Answer, Rig]:
    async with scripted(script) as engine, proxied(engine.upstream, **settings) as proxy:
        answer = await proxy.ask(request)
        await proxy.log.line()
    return answer, proxy


@pytest.mark.parametrize(
    "status", [b"400 Bad Request", b"404 Not Found", b"422 X", b"429 X", b"500 X", b"503 X"]
)
async def test_an_engines_own_error_is_passed_on_unchanged(status: bytes) -> None:
    """Status, type, waiting time and body: SDKs know what to make of them."""
    body = b'{ "error": {"message": "its own words", "code": 7} }'
    said = (
        b"HTTP/1.1 %b\r\ncontent-type: application/problem+json\r\nretry-after: 2\r\n"
        b"content-length: %d\r\n\r\n%b" % (status, len(body), body)
    )

    answer, proxy = await asked(answering(said), request_bytes())

    assert answer.status == int(status[:3])
    assert answer.body == body
    assert answer.header(b"content-type") == b"application/problem+json"
    assert answer.header(b"retry-after") == b"2"
    assert proxy.log.lines[0]["outcome"] == "refused"
    assert proxy.log.lines[0]["code"] is None


@pytest.mark.parametrize(
    ("status", "wait", "result"),
    [
        (b"200 OK", b"", "ok"),
        (b"302 Found", b"", "ok"),
        (b"400 Bad Request", b"", "refused"),
        (b"404 Not Found", b"", "refused"),
        (b"501 Not Implemented", b"", "refused"),
        (b"429 Too Many Requests", b"", "busy"),
        (b"503 Service Unavailable", b"retry-after: 3\r\n", "busy"),
        (b"529 Overloaded", b"", "busy"),
        (b"500 Internal Server Error", b"", "error"),
        (b"503 Service Unavailable", b"", "error"),
    ],
)
async def test_what_is_counted_of_an_answer_is_what_it_says(
    status: bytes, wait: bytes, result: str
) -> None:
    """An engine that fails is to be seen by its attempts alone."""
    said = b"HTTP/1.1 %b\r\n%bcontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

    _, proxy = await asked(answering(said % (status, wait)), request_bytes(), retries=0)

    assert proxy.sample("upstream_attempts_total", upstream="engine", result=result) == 1
    if result != "ok":
        assert proxy.sample("upstream_attempts_total", upstream="engine", result="ok") == 0


async def test_an_answer_that_breaks_is_not_counted_as_one() -> None:
    """Whatever its head has said."""

    async def breaks(exchange: Exchange) -> None:
        await exchange.request()
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await exchange.sent()
        exchange.reset()

    async with scripted(breaks) as engine, proxied(engine.upstream) as proxy:
        _, complete = await proxy.asked(request_bytes())
        await proxy.log.line()
        results = {
            result: proxy.sample("upstream_attempts_total", upstream="engine", result=result)
            for result in ("ok", "upstream_error")
        }

    assert not complete
    assert results == {"ok": 0, "upstream_error": 1}


NOON = b"Sun, 06 Nov 1994 12:00:00 GMT"


async def test_a_date_to_come_back_at_is_told_in_seconds() -> None:
    """It means something beside the engine's own Date alone, which does not go on."""
    said = (
        b"HTTP/1.1 429 X\r\ndate: Sun, 06 Nov 1994 11:59:30 GMT\r\nretry-after: %b\r\n"
        b"content-length: 0\r\n\r\n"
    )

    answer, _ = await asked(answering(said % NOON), request_bytes())

    assert answer.header(b"retry-after") == b"30"


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden"], ids=bytes.decode)
async def test_a_refused_credential_of_ours_is_our_fault(status: bytes) -> None:
    """The caller's key is fine: an SDK that is told 401 would ask its user for another."""
    script = json_answer({"error": {"message": "bad key canary"}}, status)

    answer, proxy = await asked(script, request_bytes())

    assert answer.status == 502
    assert code_of(answer) == "upstream_auth"
    assert b"canary" not in answer.body
    assert proxy.sample("upstream_attempts_total", upstream="engine", result="upstream_auth") == 1


async def test_a_redirect_is_not_followed() -> None:
    """An engine does not send our requests elsewhere."""
    redirect = b"HTTP/1.1 302 Found\r\nlocation: /v1/other\r\ncontent-length: 0\r\n\r\n"

    async with scripted(answering(redirect)) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes())

    assert answer.status == 302
    assert len(engine.requests) == 1


async def test_nobody_there_is_a_502() -> None:
    """The caller learns that, and neither address nor exception."""
    port = free_port()

    async with proxied(Upstream("engine", "http", "127.0.0.1", port)) as proxy:
        answer = await proxy.ask(request_bytes())

    assert answer.status == 502
    assert code_of(answer) == "upstream_unreachable"
    assert str(port).encode() not in answer.raw + answer.body
    assert b"127.0.0.1" not in answer.raw + answer.body


async def hangs_up(exchange: Exchange) -> None:
    await exchange.request()
    exchange.close()


async def tears_down(exchange: Exchange) -> None:
    await exchange.request()
    exchange.reset()


@pytest.mark.parametrize(
    "script",
    [
        hangs_up,
        tears_down,
        answering(b"SSH-2.0-OpenSSH_9\r\n"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"),
        answering(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n"),
        answering(b"HTTP/1.1 99 Odd\r\n\r\n"),
    ],
    ids=["hang_up", "reset", "other_protocol", "two_lengths", "unasked_upgrade", "status_99"],
)
async def test_what_is_no_answer_is_a_502(script: Script) -> None:
    """Nothing malformed is forwarded, and nothing of it shown."""
    answer, proxy = await asked(script, request_bytes())

    assert answer.status == 502
    assert code_of(answer) == "upstream_error"
    assert proxy.log.lines[0]["outcome"] == "upstream_failed"
    assert answer.header(b"x-llmproxy-upstream") == b"engine"


async def test_an_informational_answer_is_not_the_answer() -> None:
    """100 and 103 are the hop's; the final answer is the caller's."""
    said = (
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )

    answer, _ = await asked(answering(said), request_bytes())

    assert answer.status == 200
    assert answer.body == b"{}"
    assert answer.header(b"link") is None


async def test_an_engine_that_does_not_answer_is_cut() -> None:
    """The clock of the answer runs out; the connection is closed, not kept."""
    async with scripted(silent) as engine, proxied(engine.upstream, timeout_answer=0.1) as proxy:
        answer = await proxy.ask(request_bytes())
        await engine.abandoned()

    assert answer.status == 504
    assert code_of(answer) == "upstream_timeout"
    assert engine.accepted == 1


async def test_a_stream_has_a_clock_of_its_own() -> None:
    """A first token is waited for as long as `first_byte` says, not `answer`."""
    settings = {"timeout_first_byte": 0.1, "timeout_answer": 30.0}
    async with scripted(silent) as engine, proxied(engine.upstream, **settings) as proxy:
        answer = await proxy.ask(request_bytes(body=b'{"stream":true}'))
        await engine.abandoned()

    assert answer.status == 504


async def test_the_whole_request_may_have_a_clock() -> None:
    """It runs out while the answer still comes, however busily it comes."""

    async def goes_on_and_on(exchange: Exchange) -> None:
        await exchange.request()
        exchange.begin()
        while not exchange.ended:
            exchange.chunk(b'data: {"choices":[]}\n\n')
            await asyncio.sleep(0.01)

    async with (
        scripted(goes_on_and_on) as engine,
        proxied(engine.upstream, timeout_total=0.2) as proxy,
    ):
        answer, complete = await proxy.asked(request_bytes(body=b'{"stream":true}'))
        await engine.abandoned()

    assert answer.status == 200
    assert b'"code":"upstream_timeout"' in answer.body
    assert not complete


async def test_a_caller_may_set_a_shorter_time() -> None:
    """x-llmproxy-timeout counts from the head of the request."""
    headers = [(b"x-llmproxy-timeout", b"0.1")]

    answer, _ = await asked(silent, request_bytes(headers=headers))

    assert answer.status == 504


@pytest.mark.parametrize("by", ["operator", "caller"])
@pytest.mark.parametrize("kind", [b"application/json", b"multipart/form-data; boundary=b"])
async def test_a_body_that_drips_in_does_not_outlast_the_time(
    kind: bytes, by: str, connection: Connection
) -> None:
    """It is answered when the time is over, not when it is complete, and our server closes."""
    headers = [(b"content-type", kind), (b"content-length", b"100000")]
    if by == "caller":
        headers.append((b"x-llmproxy-timeout", b"0.3"))
    path = b"/v1/chat/completions" if b"json" in kind else b"/v1/audio/transcriptions"

    async def drip(client: RawClient) -> None:
        while True:
            client.send(b" ")
            await asyncio.sleep(0.05)

    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream, timeout_total=0.3 if by == "operator" else 0) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(path, headers=headers, body=None) + b"--b\r\n")
        dripping = asyncio.create_task(drip(client))
        try:
            answer = await client.answer()
            if connection is not Connection.UVICORN:
                assert answer.header(b"connection") == b"close"
                assert await client.rest() == b""
        finally:
            dripping.cancel()
        line = await proxy.log.line()

    assert answer.status == 504
    assert code_of(answer) == line["code"] == "upstream_timeout"
    assert engine.accepted == 0


async def test_a_caller_may_not_set_a_longer_time() -> None:
    """The operator's limit holds for everybody."""
    headers = [(b"x-llmproxy-timeout", b"500")]

    answer, _ = await asked(silent, request_bytes(headers=headers), timeout_total=0.1)

    assert answer.status == 504


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"nan", b"inf", b"1e9", b"10s", b"5,5"])
async def test_a_time_that_is_none_is_refused(value: bytes) -> None:
    """The caller learns which header was wrong; no engine is touched."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(headers=[(b"x-llmproxy-timeout", value)]))

    assert answer.status == 400
    assert json.loads(answer.body)["error"]["param"] == "x-llmproxy-timeout"
    assert engine.accepted == 0


async def test_a_request_that_comes_back_to_us_is_a_loop() -> None:
    """An upstream that is ourselves would be asked until nothing is left."""
    port = free_port()
    itself = Upstream("itself", "http", "127.0.0.1", port)
    async with scripted(ECHO) as engine, proxied(itself) as proxy:

        async def sends_back(exchange: Exchange) -> None:
            request = await exchange.request()
            async with proxy.client() as client:
                client.send(request.raw + request.body)
                answer = await client.answer()
            exchange.json(json.loads(answer.body), b"%d X" % answer.status)

        async with scripted(sends_back, port=port):
            answer = await proxy.ask(request_bytes())

    assert answer.status == 508
    assert code_of(answer) == "loop_detected"
    assert engine.accepted == 0


async def test_another_proxy_on_the_way_is_no_loop() -> None:
    """Two llmproxies one behind the other tell each other apart."""
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream) as inner,
        proxied(Upstream("inner", "http", "127.0.0.1", inner.port)) as outer,
    ):
        answer = await outer.ask(request_bytes())

    assert answer.status == 200
    via = engine.requests[0].header(b"via")
    assert via is not None and via.count(b"llmproxy-") == 2


async def test_a_dead_kept_connection_is_not_the_callers_problem() -> None:
    """The engine closed it just as we wrote to it: asked again, once, on a fresh one."""

    async def once(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.head()
            exchange.reset()
            return
        await exchange.request()
        exchange.json({"ok": True})

    async def answers_once_then_dies(exchange: Exchange) -> None:
        await exchange.request()
        if exchange.number == 2:
            exchange.reset()
        else:
            exchange.json({"ok": True})

    async with scripted(answers_once_then_dies) as engine, proxied(engine.upstream) as proxy:
        answers = [await proxy.ask(request_bytes()) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert engine.accepted == 3

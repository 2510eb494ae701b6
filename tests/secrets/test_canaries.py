"""Keys, prompts and answers pushed through many endings, with every log at DEBUG: none is seen."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from llmproxy.logs import console_line, json_line
from llmproxy.settings import Settings
from tests.support.client import RawClient, raw_client, request_bytes
from tests.support.proxy import serving
from tests.support.rig import proxied
from tests.support.streams import CHAT
from tests.support.upstream import Exchange, ScriptedServer, answering, scripted

CLIENT_KEY = "sk-client-q7Vd93LmXz"
UPSTREAM_KEY = "sk-upstream-b4Tk81RwYc"
ADMIN_KEY = "admin-j5Hn62PsUe"
PROMPT = "prompt-w8Fg47QaMo my secret diary"
ANSWER = "answer-e3Rt95UiBn what the model said"
COOKIE = "session-z1Xc28VbNm"
CANARIES = [CLIENT_KEY, UPSTREAM_KEY, ADMIN_KEY, PROMPT, ANSWER, COOKIE]

SECRET_HEADERS = [
    (b"authorization", f"Bearer {CLIENT_KEY}".encode()),
    (b"x-api-key", CLIENT_KEY.encode()),
    (b"cookie", f"id={COOKIE}".encode()),
    (b"x-request-id", f"{PROMPT} is no id".encode()),
]
BODY = json.dumps({"model": "llama", "stream": True, "prompt": PROMPT}).encode()
TOKEN = b'data: {"choices":[{"text":"%b"}]}\n\n' % ANSWER.encode()


def seen(*texts: bytes | str) -> list[str]:
    """Return the canaries that stand in any of the texts, escaped or not."""
    everything = "\n".join(
        text.decode(errors="replace") if isinstance(text, bytes) else text for text in texts
    )
    return [canary for canary in CANARIES if canary in everything or repr(canary) in everything]


Script = Callable[[Exchange], Awaitable[None]]


async def answers(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nset-cookie: %b\r\n"
        b"transfer-encoding: chunked\r\n\r\n" % COOKIE.encode()
    )
    exchange.chunk(TOKEN)
    exchange.chunk(b"".join(CHAT.terminal))
    exchange.end()


async def breaks(exchange: Exchange) -> None:
    await exchange.request()
    exchange.begin()
    exchange.chunk(TOKEN)
    await asyncio.sleep(0.02)
    exchange.reset()


async def stays_silent(exchange: Exchange) -> None:
    await exchange.request()
    exchange.begin()
    exchange.chunk(TOKEN[:-9])
    await exchange.closed()


async def hangs_up(exchange: Exchange) -> None:
    await exchange.request()
    exchange.close()


async def says_nonsense(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(f"{ANSWER}\r\n{UPSTREAM_KEY}\r\n\r\n".encode())


async def sends_an_ambiguous_head(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(
        b"HTTP/1.1 200 OK\r\nx-internal: %b\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
        % UPSTREAM_KEY.encode()
    )


async def ends_before_it_begins(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nset-cookie: %b\r\n"
        b"content-length: 0\r\n\r\n" % COOKIE.encode()
    )


async def refuses_our_key(exchange: Exchange) -> None:
    request = await exchange.request()
    told = {"error": {"message": f"{ANSWER}: {request.header(b'authorization')!r} is not valid"}}
    exchange.json(told, b"401 Unauthorized")


async def sends_away(exchange: Exchange) -> None:
    await exchange.request()
    exchange.send(
        b"HTTP/1.1 307 X\r\nlocation: https://u:%b@host/\r\ncontent-length: 0\r\n\r\n"
        % UPSTREAM_KEY.encode()
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A request, an engine, and whether what the caller gets is the engine's own."""

    script: Script = answers
    request: bytes = request_bytes(headers=SECRET_HEADERS, body=BODY)
    own_answer: bool = False


def asking(target: bytes = b"/v1/chat/completions", **options: object) -> bytes:
    headers = [*SECRET_HEADERS, *options.pop("headers", [])]  # type: ignore[misc]
    options.setdefault("body", BODY)
    return request_bytes(target, headers=headers, **options)  # type: ignore[arg-type]


FORM = (
    b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n%b\r\n--b--\r\n' % PROMPT.encode()
)
CASES = {
    "answered": Case(own_answer=True),
    "broken": Case(breaks, own_answer=True),
    "silent": Case(stays_silent, own_answer=True),
    "hung_up": Case(hangs_up),
    "nonsense": Case(says_nonsense),
    "ambiguous_head": Case(sends_an_ambiguous_head),
    "empty_stream": Case(ends_before_it_begins),
    "our_key_refused": Case(refuses_our_key),
    "sent_away": Case(sends_away),
    "bad_json": Case(request=asking(body=BODY[:-1])),
    "bad_json_large": Case(request=asking(body=BODY[:-1] + b" " * 100_000)),
    "bad_model": Case(request=asking(body=b'{"model":["%b"]}' % PROMPT.encode())),
    "too_large": Case(request=asking(body=BODY + b" " * 300_000)),
    "compressed": Case(request=asking(headers=[(b"content-encoding", b"br")])),
    "bad_timeout": Case(request=asking(headers=[(b"x-llmproxy-timeout", PROMPT.encode())])),
    "not_found": Case(request=asking(b"/nothing?key=" + CLIENT_KEY.encode())),
    "key_in_query": Case(
        request=asking(b"/v1/completions?api_key=" + CLIENT_KEY.encode()), own_answer=True
    ),
    "bad_method": Case(request=asking(method=b"PURGE")),
    "management": Case(request=asking(b"/v1/load_lora_adapter")),
    "form": Case(
        request=asking(
            b"/v1/audio/transcriptions",
            headers=[(b"content-type", b"multipart/form-data; boundary=b")],
            body=FORM,
        ),
        own_answer=True,
    ),
    "not_http": Case(request=f"{PROMPT} {CLIENT_KEY}\r\n\r\n".encode()),
}


async def everything_said(client: RawClient, request: bytes) -> bytes:
    client.send(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
    return await client.rest()


def configured(engine: ScriptedServer) -> str:
    return f"{engine.url};key={UPSTREAM_KEY}"


SETTINGS = {
    "admin_key": ADMIN_KEY,
    "timeout_idle": 0.1,
    "max_body": 250_000,
    "log_level": "debug",
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_no_secret_is_written_down(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a log, ours or the server's, nor in the metrics, nor in an answer of ours."""
    with caplog.at_level(logging.DEBUG):
        async with (
            scripted(case.script) as engine,
            proxied(configured(engine), **SETTINGS) as proxy,
        ):
            async with proxy.client() as client:
                said = await everything_said(client, case.request)
            metrics = proxy.app.metrics.render()
            lines = [json_line(line) + console_line(line) for line in proxy.log.lines]
            internals = [repr(proxy.app), repr(proxy.app.settings), repr(vars(proxy.app))]

    assert seen(metrics) == []
    assert seen(*lines) == []
    assert seen(caplog.text) == []
    assert seen(*internals) == []
    expected = [ANSWER] if case.own_answer else []
    assert [canary for canary in seen(said) if canary not in expected] == []


async def test_a_client_that_leaves_leaves_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of an answer."""
    with caplog.at_level(logging.DEBUG):
        async with scripted(stays_silent) as engine, proxied(configured(engine)) as proxy:
            async with proxy.client() as client:
                client.send(CASES["answered"].request)
                await client.anything()
            line = await proxy.log.line()

    assert line["outcome"] == "client_gone"
    assert seen(caplog.text, json_line(line)) == []


async def test_the_callers_key_never_reaches_the_engine() -> None:
    """Nor the engine's the caller."""
    async with (
        scripted(answers) as engine,
        proxied(configured(engine)) as proxy,
        proxy.client() as client,
    ):
        said = await everything_said(client, CASES["answered"].request)

    assert seen(engine.requests[0].raw) == [UPSTREAM_KEY]
    assert seen(said) == [ANSWER]


@pytest.mark.parametrize(
    "script",
    [hangs_up, says_nonsense, sends_an_ambiguous_head, ends_before_it_begins],
    ids=lambda script: script.__name__,
)
async def test_a_5xx_names_no_host_and_no_software(script: Script) -> None:
    """Not the address, not the exception, not the version."""
    async with scripted(script) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(CASES["answered"].request)

    said = (answer.raw + answer.body).lower()
    assert answer.status == 502
    for word in (b"127.0.0.1", b"%d" % engine.address[1], b"exception", b"traceback", b"python"):
        assert word not in said
    for software in (b"uvicorn", b"httptools", b"upstreambroken", b"connectionreset"):
        assert software not in said


def test_settings_show_no_secret() -> None:
    """However they are printed."""
    settings = Settings(upstreams=f"http://h;key={UPSTREAM_KEY}", admin_key=ADMIN_KEY)

    printed = [repr(settings), str(settings), str(settings.model_dump()), f"{vars(settings)}"]
    assert seen(*printed, settings.model_dump_json()) == []


async def test_a_served_proxy_says_no_secret() -> None:
    """All that the process writes, to both of its streams, at DEBUG."""
    environment = {
        "LLMPROXY_LOG_LEVEL": "debug",
        "LLMPROXY_ADMIN_KEY": ADMIN_KEY,
        "LLMPROXY_TIMEOUT_IDLE": "0.1",
        "LLMPROXY_MAX_BODY": "250000",
    }
    scripts = [case.script for case in CASES.values()]

    async def in_order(exchange: Exchange) -> None:
        await scripts[min(exchange.connection, len(scripts)) - 1](exchange)

    async with scripted(in_order) as engine:
        environment["LLMPROXY_UPSTREAMS"] = configured(engine)
        async with serving(environment) as served:
            for case in CASES.values():
                async with raw_client(port=served.port) as client:
                    await everything_said(client, case.request)
        said = served.process.stdout + served.process.stderr

    assert said.count('"event":"request"') >= len(CASES) - 2
    assert seen(said) == []


async def test_an_endless_head_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever an engine has put into it."""
    head = b"HTTP/1.1 200 OK\r\nx-%b: 1\r\n: %b\r\n\r\n" % (b"a" * 70_000, ANSWER.encode())
    with caplog.at_level(logging.DEBUG):
        async with scripted(answering(head)) as engine, proxied(configured(engine)) as proxy:
            answer = await proxy.ask(CASES["answered"].request)

    assert answer.status == 502
    assert seen(answer.raw, answer.body, caplog.text) == []

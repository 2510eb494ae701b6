"""Sixteen ways in which a provider fails, seen by its client and by the servers.

Each case begins with a healthy request to every server, so that the fault comes over a
connection that has been used before, and ends with healthy requests and nothing left over.
Beside the server that fails stands another of the same model, or one of the fallback model.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from llmproxy.routing.rescue import COMMENT
from tests.support.client import Answer, RawClient
from tests.support.fleet import (
    DONE,
    Answering,
    Member,
    asked_for,
    dropping,
    event,
    failing,
    fleet,
    silent,
    speaking,
    words_of,
)
from tests.support.outside import (
    BEGUN,
    TEXT,
    at_rest,
    chat,
    error_of,
    in_order,
    said,
    server_named,
)
from tests.support.rig import Connection, Rig, serve_with
from tests.support.upstream import Exchange, Request


@pytest.fixture(autouse=True, params=[Connection.OURS], ids=lambda each: each.value)
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """On our own connections alone: what depends on them stands in the files beside this one."""
    chosen: Connection = request.param
    serve_with(chosen)
    yield chosen
    serve_with(Connection.UVICORN)


SHORT = 0.25  # seconds that a clock of ours has in these cases
streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
beside = pytest.mark.parametrize("other", ["m", "f"], ids=["same_model", "fallback"])


@dataclass
class Case:
    """A proxy in front of a server that fails as told, and of another that does not."""

    proxy: Rig
    first: Member
    second: Member
    client: RawClient  # keeps its connection as long as the proxy does
    stream: bool
    seconds: float = 0.0  # what the last request took
    _before: tuple[int, int] = field(default=(0, 0))

    async def ask(self, **changed: Any) -> Answer:
        """Ask on the connection of the case."""
        began = asyncio.get_running_loop().time()
        self._before = len(self.first.asked), len(self.second.asked)
        self.client.send(chat(**{"stream": self.stream, **changed}))
        answer = await self.client.answer()
        self.seconds = asyncio.get_running_loop().time() - began
        return answer

    @property
    def asked(self) -> tuple[int, int]:
        """How often each server was asked for the last request."""
        return (
            len(self.first.asked) - self._before[0],
            len(self.second.asked) - self._before[1],
        )

    def good(self, answer: Answer, attempts: int, by: str = "b") -> None:
        """Check an answer as the client should have got it."""
        assert (answer.status, said(answer)) == (200, TEXT)
        assert self.client.complete
        assert b'"error"' not in answer.body
        assert not self.stream or answer.body.count(DONE) == 1
        assert answer.header(b"x-llmproxy-attempts") == b"%d" % attempts
        assert answer.header(b"x-llmproxy-upstream") == by.encode()


@asynccontextmanager
async def case(
    *faults: Answering, stream: bool, other: str = "m", second: Answering | None = None, **more: Any
) -> AsyncIterator[Case]:
    """Run the case: both servers have answered once, and the next one to be asked fails."""
    first = Member(in_order(speaking(TEXT), *faults, speaking(TEXT)))
    beside = Member(in_order(speaking(TEXT), second or speaking(TEXT)), models=(other,))
    chain: Any = {} if other == "m" else {"fallbacks": "m=f", "rescue": "fallback"}
    async with (
        fleet(first, beside, **{**chain, **more}) as (proxy, _),
        proxy.client() as client,
    ):
        this = Case(proxy, first, beside, client, stream)
        assert (await this.ask()).status == 200
        assert (await this.ask(model=other)).status == 200
        assert (len(first.asked), len(beside.asked)) == (1, 1)
        opened = first.server.accepted if first.server else 0
        yield this
        await at_rest(proxy)
        async with proxy.client() as fresh:
            this.client = fresh
            for _ in range(2):
                healthy = await this.ask()
                assert (healthy.status, said(healthy)) == (200, TEXT)
        for name in ("a", "b"):
            assert proxy.sample("breaker_state", upstream=name) == 0
        assert first.server is not None
        assert first.server.accepted <= opened + 6
        await at_rest(proxy)


# 1 and 2: too many requests


@streamed
@beside
async def test_01_429_with_a_time(stream: bool, other: str) -> None:
    """Another server is asked at once; the fallback waits its turn until the time is over."""
    after = 1 if other != "m" else 8  # seconds
    busy = failing(b"429 Too Many Requests", headers=b"retry-after: %d\r\n" % after)
    async with case(busy, stream=stream, other=other) as this:
        answer = await this.ask()

        if other == "m":
            this.good(answer, attempts=2)
            assert this.asked == (1, 1)
            assert this.seconds < after
        else:
            this.good(answer, attempts=2, by="a")
            assert this.asked == (2, 0)
            assert this.seconds >= after
        # It was busy, not broken: it is left alone for as long as it said.
        assert server_named(this.proxy, "a").breaker.state == "closed"


@streamed
@beside
async def test_01_429_with_a_time_that_is_too_long_to_wait(stream: bool, other: str) -> None:
    """Whoever else can answer does, be it with the fallback model."""
    busy = failing(b"429 Too Many Requests", headers=b"retry-after: 60\r\n")
    async with case(busy, stream=stream, other=other) as this:
        answer = await this.ask()

        this.good(answer, attempts=2)
        assert this.asked == (1, 1)
        assert this.seconds < 5


@streamed
@beside
async def test_02_429_without_a_time(stream: bool, other: str) -> None:
    """The same bounds as for any failure: at most twice on one server."""
    busy = failing(b"429 Too Many Requests")
    async with case(busy, busy, stream=stream, other=other) as this:
        answer = await this.ask()

        this.good(answer, attempts=2 if other == "m" else 3)
        assert this.asked == ((1, 1) if other == "m" else (2, 1))


@streamed
async def test_02_429_from_everybody_is_told_as_it_is(stream: bool) -> None:
    """Status, body and header of the server, within the bounds."""
    busy = failing(b"429 Too Many Requests", headers=b"x-note: 7\r\n")
    async with case(*[busy] * 4, stream=stream, second=in_order(busy, busy, speaking(TEXT))) as it:
        answer = await it.ask()

        assert answer.status == 429
        assert error_of(answer)["code"] == "engine_said"
        assert answer.header(b"x-note") == b"7"
        assert answer.header(b"x-should-retry") == b"false"
        assert sum(it.asked) == 3
        assert max(it.asked) == 2


# 3 and 4: 5xx


@streamed
@beside
async def test_03_500_once(stream: bool, other: str) -> None:
    """One attempt more, and the client knows nothing of it."""
    async with case(failing(b"500 Internal Server Error"), stream=stream, other=other) as this:
        answer = await this.ask()

        this.good(answer, attempts=2, by="b" if other == "m" else "a")
        assert this.asked == ((1, 1) if other == "m" else (2, 0))


@streamed
@beside
async def test_04_503_always(stream: bool, other: str) -> None:
    """The other one answers, for the fallback model as the last attempt."""
    down = failing(b"503 Service Unavailable")
    async with case(down, down, stream=stream, other=other) as this:
        answer = await this.ask()

        this.good(answer, attempts=2 if other == "m" else 3)
        assert this.asked == ((1, 1) if other == "m" else (2, 1))


@streamed
async def test_04_503_from_everybody_is_told_as_it_is(stream: bool) -> None:
    """The first one's own answer, after as many attempts as there may be."""
    down = failing(b"503 Service Unavailable")
    async with case(*[down] * 4, stream=stream, second=in_order(down, down, speaking(TEXT))) as it:
        answer = await it.ask()

        assert (answer.status, error_of(answer)["code"]) == (503, "engine_said")
        assert sum(it.asked) == 3
        assert it.client.complete


# 5, 6 and 7: nothing comes


@streamed
@beside
async def test_05_reset(stream: bool, other: str) -> None:
    """On a connection that has been used: once more on a fresh one, then elsewhere."""
    async with case(dropping, dropping, dropping, stream=stream, other=other) as this:
        answer = await this.ask()

        assert (answer.status, said(answer)) == (200, TEXT)
        assert this.asked[0] >= 2
        assert this.client.complete


@streamed
async def test_05_reset_by_everybody(stream: bool) -> None:
    """Two servers are touched, and then it is told: the request may be what broke them."""
    async with case(
        *[dropping] * 2, stream=stream, second=in_order(dropping, dropping, speaking(TEXT))
    ) as it:
        answer = await it.ask()

        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error")


@streamed
@beside
async def test_06_silence(stream: bool, other: str) -> None:
    """Cut at the clock, closed, never asked twice."""
    clocks: Any = {"timeout_first_byte": SHORT, "timeout_answer": SHORT}
    async with case(silent, stream=stream, other=other, **clocks) as this:
        answer = await this.ask()

        this.good(answer, attempts=2)
        assert this.asked == (1, 1)


async def _head_alone(exchange: Exchange, request: Request) -> None:
    exchange.begin()
    await exchange.closed()


async def _role_alone(exchange: Exchange, request: Request) -> None:
    exchange.begin()
    exchange.chunk(b": waiting in line\n\n")
    await exchange.closed()


@beside
@pytest.mark.parametrize("slow", [silent, _head_alone, _role_alone])
async def test_07_slow_first_token(slow: Answering, other: str) -> None:
    """A head alone, and a comment, are no token: it is looked for elsewhere."""
    async with case(slow, stream=True, other=other, first_token_limit=SHORT) as this:
        answer = await this.ask()

        assert (answer.status, said(answer)) == (200, TEXT)
        assert this.client.complete
        assert this.asked == (1, 1)


# 8, 9, 10, 11: a stream that breaks


def _breaks(text: str, how: Callable[[Exchange], None]) -> Answering:
    """Begin to say a text, and then break; what ended properly is good for another request."""

    async def answer(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"role": "assistant", "content": ""}))
        for word in words_of(text):
            exchange.chunk(event({"content": word}))
        for _ in range(50):  # everything runs in one loop: by then the client has it
            await asyncio.sleep(0)
        how(exchange)
        if how not in (_end, _error):
            await exchange.closed()

    return answer


def _cut(exchange: Exchange) -> None:
    exchange.close()


def _reset(exchange: Exchange) -> None:
    exchange.reset()


def _stall(exchange: Exchange) -> None:
    pass


def _nonsense(exchange: Exchange) -> None:
    exchange.send(b"zz\r\nthis is no chunk\r\n")


def _end(exchange: Exchange) -> None:
    exchange.end()


def _error(exchange: Exchange) -> None:
    exchange.chunk(b'data: {"error": {"message": "out of memory"}}\n\n')
    exchange.chunk(DONE)
    exchange.end()


BREAKS = [
    pytest.param(_cut, id="08_cut"),
    pytest.param(_reset, id="08_reset"),
    pytest.param(_stall, id="09_stall"),
    pytest.param(_nonsense, id="10_malformed_chunk"),
    pytest.param(_end, id="11_no_done"),
    pytest.param(_error, id="11_error_event"),
]


@beside
@pytest.mark.parametrize("how", BREAKS)
async def test_a_stream_that_breaks_is_finished(
    how: Callable[[Exchange], None], other: str
) -> None:
    """One stream, one text, and a comment where the other server took over."""
    async with case(_breaks(BEGUN, how), stream=True, other=other, timeout_idle=SHORT) as this:
        answer = await this.ask()

        assert (answer.status, said(answer)) == (200, TEXT)
        assert this.client.complete
        assert answer.body.count(COMMENT) == 1
        assert answer.body.count(DONE) == 1
        assert b'"error"' not in answer.body
        assert this.asked == (1, 1)


@pytest.mark.parametrize("how", BREAKS)
async def test_a_stream_that_nobody_can_finish_ends_in_an_error(
    how: Callable[[Exchange], None],
) -> None:
    """What was said stays said, one error event, no [DONE], and no proper end."""
    broken = _breaks(BEGUN, how)
    async with case(
        broken, stream=True, second=in_order(broken, speaking(TEXT)), timeout_idle=SHORT
    ) as this:
        answer = await this.ask()

        assert said_before(answer) == BEGUN
        assert answer.body.count(b'"error"') == 1
        assert error_of(answer)["message"]
        assert DONE not in answer.body
        assert not this.client.complete


def said_before(answer: Answer) -> str:
    """Return the text of a stream without its error event."""
    events = [each for each in answer.body.split(b"\n\n") if b'"error"' not in each]
    return said(Answer(200, b"", answer.headers, b"", b"\n\n".join(events)))


@pytest.mark.parametrize("how", [_cut, _reset, _stall, _nonsense])
async def test_08_an_answer_that_breaks_is_never_made_up(how: Callable[[Exchange], None]) -> None:
    """Half a JSON answer that has begun to go out is cut, and nobody else is asked."""

    async def half(exchange: Exchange, request: Request) -> None:
        exchange.begin(content_type=b"application/json")
        exchange.chunk(b'{"choices": [{"message": ')
        for _ in range(50):
            await asyncio.sleep(0)
        how(exchange)
        await exchange.closed()

    async with case(half, stream=False, timeout_idle=SHORT) as this:
        answer = await this.ask()

        assert not this.client.complete
        assert answer.body == b'{"choices": [{"message": '
        assert this.asked == (1, 0)


async def test_10_a_malformed_event_passes_untouched() -> None:
    """It is between the server and the client; the stream goes on to its end."""
    malformed = b'data: {"choices": [{"delta": {"content": "x"\n\n'

    async def odd(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"content": "Hello"}))
        exchange.chunk(malformed)
        exchange.chunk(event({}, "stop"))
        exchange.chunk(DONE)
        exchange.end()

    async with case(odd, stream=True) as this:
        answer = await this.ask()

        assert malformed in answer.body
        assert answer.body.endswith(DONE)
        assert this.client.complete
        assert this.asked == (1, 0)


async def test_11_no_done_after_a_finish_is_a_good_end() -> None:
    """At once, with what was said and nothing made up."""

    async def without(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"content": TEXT}))
        exchange.chunk(event({}, "stop"))
        exchange.end()

    async with case(without, stream=True) as this:
        answer = await this.ask()

        assert said(answer) == TEXT
        assert this.client.complete
        assert DONE not in answer.body
        assert b'"error"' not in answer.body
        assert this.asked == (1, 0)


# 12 and 13: what is wrong with the request

TOO_LONG = [
    pytest.param(
        b"400 Bad Request",
        {"message": "This model's maximum context length is 4096 tokens.", "code": 400},
        id="vllm",
    ),
    pytest.param(
        b"400 Bad Request",
        {"message": "too many tokens", "code": "context_length_exceeded"},
        id="openai",
    ),
    pytest.param(
        b"400 Bad Request",
        {"message": "the request exceeds the available context size", "code": 400},
        id="llamacpp",
    ),
    pytest.param(
        b"500 Internal Server Error",
        {"message": "the request exceeds the available context size. try increasing it"},
        id="llamacpp_of_old",
    ),
]


@streamed
@pytest.mark.parametrize(("status", "error"), TOO_LONG)
async def test_12_context_length(status: bytes, error: dict[str, object], stream: bool) -> None:
    """One attempt on the model, then the one that is configured for long prompts."""
    too_long = failing(status, body={"error": error})
    async with case(too_long, stream=stream, other="f", fallbacks="context:m=f") as this:
        answer = await this.ask()

        this.good(answer, attempts=2)
        assert this.asked == (1, 1)
        assert asked_for(this.second.asked[-1])["model"] == "f"
        assert server_named(this.proxy, "a").breaker.has_failed is False


@streamed
@beside
@pytest.mark.parametrize(("status", "error"), TOO_LONG)
async def test_12_context_length_without_a_longer_model(
    status: bytes, error: dict[str, object], stream: bool, other: str
) -> None:
    """The server's own answer, at once; no fallback is for that."""
    too_long = failing(status, body={"error": error})
    async with case(too_long, stream=stream, other=other) as this:
        answer = await this.ask()

        assert answer.status == int(status[:3])
        assert error_of(answer) == error
        assert this.asked == (1, 0)


@streamed
@beside
async def test_13_content_filter(stream: bool, other: str) -> None:
    """A refusal is an answer: it is passed on unchanged, and nobody else is asked."""
    refusal = {"message": "The response was filtered", "code": "content_filter", "param": "prompt"}
    refused = failing(b"400 Bad Request", body={"error": refusal})
    async with case(refused, stream=stream, other=other) as this:
        answer = await this.ask()

        assert answer.status == 400
        assert error_of(answer) == refusal
        assert answer.header(b"x-should-retry") is None
        assert this.asked == (1, 0)
        assert server_named(this.proxy, "a").breaker.has_failed is False


async def test_13_a_stream_that_ends_at_the_filter_is_finished() -> None:
    """It is what the model server says is the end, and no break."""

    async def filtered(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"content": BEGUN}))
        exchange.chunk(event({}, "content_filter"))
        exchange.chunk(DONE)
        exchange.end()

    async with case(filtered, stream=True) as this:
        answer = await this.ask()

        assert said(answer) == BEGUN
        assert b'"finish_reason":"content_filter"' in answer.body
        assert this.client.complete
        assert this.asked == (1, 0)


# 14: a fallback that refuses prefill


@beside
@pytest.mark.parametrize("status", [b"400 Bad Request", b"422 Unprocessable", b"500 Internal"])
async def test_14_prefill_is_refused(status: bytes, other: str) -> None:
    """It is asked the first question again, and what the client has is skipped."""

    async def refusing(exchange: Exchange, request: Request) -> None:
        if asked_for(request)["messages"][-1]["role"] == "assistant":
            error = {"message": "Cannot set `add_generation_prompt`"}
            await failing(status, body={"error": error})(exchange, request)
        else:
            await speaking(TEXT)(exchange, request)

    async with case(
        _breaks(BEGUN, _reset), stream=True, other=other, second=refusing, preset="vllm"
    ) as this:
        answer = await this.ask()

        assert (answer.status, said(answer)) == (200, TEXT)
        assert this.client.complete
        assert this.asked == (1, 2)
        assert answer.body.count(COMMENT) == 1


async def test_14_prefill_is_refused_and_the_text_differs() -> None:
    """Then the stream ends in its error: another text is no continuation."""

    async def refusing(exchange: Exchange, request: Request) -> None:
        if asked_for(request)["messages"][-1]["role"] == "assistant":
            await failing(b"400 Bad Request")(exchange, request)
        else:
            await speaking("Something else entirely")(exchange, request)

    async with case(
        _breaks(BEGUN, _reset),
        stream=True,
        second=in_order(refusing, refusing, speaking(TEXT)),
        preset="vllm",
    ) as this:
        answer = await this.ask()

        assert said_before(answer) == BEGUN
        assert error_of(answer)["code"] == "upstream_error"
        assert not this.client.complete


# 15: flapping


@streamed
@beside
async def test_15_a_primary_that_flaps(stream: bool, other: str) -> None:
    """Every client gets its answer, whatever the primary is doing just then."""
    flaps = [failing(b"503 Service Unavailable"), speaking(TEXT), dropping] * 4
    async with case(*flaps, stream=stream, other=other) as this:
        for _ in range(10):
            async with this.proxy.client() as client:
                this.client = client
                answer = await this.ask()
                assert (answer.status, said(answer)) == (200, TEXT)
                assert client.complete


# 16: accounting

KEY = "sk-of-somebody-who-pays"


def _counting(text: str, *, prompt: int, completion: int) -> Answering:
    """Say a text and what was counted, as vLLM does: in a chunk of its own, if asked to."""

    async def answer(exchange: Exchange, request: Request) -> None:
        asked = asked_for(request)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        if not asked.get("stream"):
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            exchange.json({"model": asked["model"], "choices": choices, "usage": usage})
            return
        exchange.begin()
        for word in words_of(text):
            exchange.chunk(event({"content": word}))
        exchange.chunk(event({}, "stop"))
        if asked.get("stream_options", {}).get("include_usage"):
            about = {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage}
            exchange.chunk(b"data: %b\n\n" % orjson.dumps(about))
        exchange.chunk(DONE)
        exchange.end()

    return answer


@pytest.mark.parametrize("asked", [None, True], ids=["uncounted", "counted"])
@pytest.mark.parametrize(
    ("fault", "stream"),
    [("500", False), ("500", True), ("none", False), ("none", True), ("break", True)],
)
async def test_16_accounting(fault: str, stream: bool, asked: bool | None) -> None:
    """Log, metrics and the caller's account say the same, once; the client sees what it asked."""
    begun = "one two three"
    faults: dict[str, list[Answering]] = {
        "500": [failing(b"500 Internal Server Error")],
        "break": [_breaks(begun, _reset)],
        "none": [],
    }
    whole = _counting("one two three four", prompt=10, completion=4)

    async def rest(exchange: Exchange, request: Request) -> None:
        going_on = asked_for(request)["messages"][-1]["role"] == "assistant"
        # What was said so far is part of the prompt for who goes on with it.
        script = _counting(" four", prompt=13, completion=1) if going_on else whole
        await script(exchange, request)

    changed: dict[str, Any] = {"stream": stream, "max_tokens": 100}
    if asked:
        changed["stream_options"] = {"include_usage": True}
    async with fleet(
        in_order(*faults[fault], whole),
        in_order(rest),
        preset="vllm",
        middleware="auth,rate_limit,routing",
        auth="keys",
        keys=f"ada:{KEY}",
        limits="100000 tok/min, 100 req/min",
    ) as (proxy, members):
        bearer = [(b"authorization", b"Bearer " + KEY.encode())]
        answer, complete = await proxy.asked(chat(headers=bearer, **changed))
        line = await proxy.log.line()
        attempts = 1 if fault == "none" else 2

        assert complete
        assert answer.status == 200
        assert line["attempts"] == attempts == sum(len(each.asked) for each in members)
        expected = (10, 4)  # each event of the first server was one token
        assert (line["prompt_tokens"], line["completion_tokens"]) == expected
        # Nobody has counted them, though.
        assert line["tokens_estimated"] is (True if fault == "break" else None)
        kinds = ("prompt", "completion")
        counted = tuple(proxy.sample("tokens_total", model="m", kind=kind) for kind in kinds)
        assert counted == expected
        assert answer.body.count(b'"usage":{') == (1 if asked or not stream else 0)
        for member in members:
            for request in member.asked:
                assert KEY.encode() not in request.raw
        # A second answer tells what is left: what the first took, once, and an estimate.
        again = await proxy.ask(chat(headers=bearer, **{**changed, "stream": False}))
        left = int(again.header(b"x-ratelimit-remaining-tokens") or b"-1")
        reserved = 100_000 - sum(expected) - left
        assert 0 < reserved <= 100 + 200
        requests = int(again.header(b"x-ratelimit-remaining-requests") or b"-1")
        assert requests == 98
        done = sum(
            proxy.sample("upstream_attempts_total", upstream=name, result=result)
            for name in ("a", "b")
            for result in ("ok", "error", "busy", "upstream_error", "failed")
        )
        assert done == attempts + 1
        await at_rest(proxy)


# Streaming stays streaming


def _stepwise(begun: str, rest: str, steps: "asyncio.Queue[None]", how: str) -> Answering:
    """Say one word for each step that is allowed, and break behind the last of `begun`."""

    async def answer(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"role": "assistant", "content": ""}))
        for word in begun.split():
            await steps.get()
            exchange.chunk(event({"content": word + " "}))
        if how == "break":
            await steps.get()
            exchange.reset()
            return
        for word in rest.split():
            await steps.get()
            exchange.chunk(event({"content": word + " "}))
        exchange.chunk(event({}, "stop"))
        exchange.chunk(DONE)
        exchange.end()

    return answer


@pytest.mark.parametrize("preset", ["http", "vllm"])
async def test_a_chunk_is_with_the_client_before_the_next_is_sent(preset: str) -> None:
    """While bytes are kept, and while another server goes on with the stream."""
    steps: asyncio.Queue[None] = asyncio.Queue()
    begun, rest = "one two three", "four five six"
    again = begun if preset == "http" else ""
    async with fleet(
        _stepwise(begun, "", steps, "break"), _stepwise(again, rest, steps, "go on"), preset=preset
    ) as (proxy, (_, b)):
        async with proxy.client() as client:
            client.send(chat(stream=True))
            await client.until(b'"role"')
            for word in begun.split():
                assert not client.unread or word.encode() not in client.unread
                steps.put_nowait(None)
                await client.until(b'"content":"%b "' % word.encode())
            steps.put_nowait(None)  # it breaks
            for _ in again.split():
                steps.put_nowait(None)
            for word in rest.split():
                assert b'"content":"%b "' % word.encode() not in client.unread
                steps.put_nowait(None)
                await client.until(b'"content":"%b "' % word.encode())
            await client.until(DONE)
        assert len(b.asked) == 1
        await at_rest(proxy)

"""One context, one log line and one set of measurements per request."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmproxy.context import RequestContext, get_context
from llmproxy.errors import (
    ClientGone,
    InvalidJson,
    ProxyError,
    Stopped,
    UpstreamBroken,
    UpstreamTimeout,
    present,
)
from llmproxy.metrics import Metrics
from llmproxy.middleware.observe import ObserveMiddleware
from llmproxy.protocol.endpoints import CHAT
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.protocol.usage_tap import UsageTap
from llmproxy.records import Ending, InferenceRequest, Principal, Usage
from llmproxy.types import ASGIApp, Header, Message, Receive, Scope, Send, Writer, writer_of
from tests.support.asgi import Exchange, cancel_in_flight, drive
from tests.support.rig import KeptLog, sample
from tests.support.upstream import chat_events


class Observed:
    """An app under observation, and what was written down about it."""

    def __init__(self, app: ASGIApp) -> None:
        self.log = KeptLog()
        self.metrics = Metrics()
        self.app = ObserveMiddleware(
            app, metrics=self.metrics, access_log=self.log, trusted_proxies=TrustedProxies()
        )

    async def drive(self, **options: Any) -> Exchange:
        return await drive(self.app, **options)

    @property
    def line(self) -> dict[str, Any]:
        """The one line that was written."""
        assert len(self.log.lines) == 1
        return self.log.lines[0]

    def counted(self, **labels: str) -> float:
        named = {"model": "", "upstream": "", **labels}
        return sample(self.metrics.render(), "llmproxy_requests_total", **named)


def answering(
    status: int = 200,
    chunks: tuple[bytes, ...] = (b"a", b"bc"),
    *,
    complete: bool = True,
    note: Callable[[RequestContext], None] = lambda ctx: None,
) -> ASGIApp:
    """Return an app that notes something in the context and answers."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        note(get_context(scope))
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-a", b"1")]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def from_engine(ctx: RequestContext) -> None:
    ctx.upstream = "gpu1"
    ctx.attempts = 1


async def test_a_whole_answer_is_completed() -> None:
    """The line says who asked for what, what came of it, and how much it was."""
    observed = Observed(answering(note=from_engine))

    await observed.drive(path="/v1/chat/completions")

    line = observed.line
    assert line["event"] == "request"
    assert (line["method"], line["path"]) == ("POST", "/v1/chat/completions")
    assert (line["status"], line["outcome"], line["code"]) == (200, "completed", None)
    assert (line["upstream"], line["attempts"], line["bytes"]) == ("gpu1", 1, 3)
    assert line["client"] == "192.0.2.7"
    assert observed.counted(upstream="gpu1", status="200", outcome="completed") == 1


async def test_an_engines_error_is_refused_not_failed() -> None:
    """Nothing went wrong with the proxy or the server: it said no."""
    observed = Observed(answering(status=400, note=from_engine))

    await observed.drive()

    assert observed.line["outcome"] == "refused"


def failing(error: Exception) -> Callable[[RequestContext], None]:
    def note(ctx: RequestContext) -> None:
        ctx.failure = error  # type: ignore[assignment]  # always a ProxyError

    return note


@pytest.mark.parametrize(
    ("error", "complete", "status", "outcome"),
    [
        (InvalidJson("no"), True, 400, "rejected"),
        (UpstreamBroken("no"), True, 502, "upstream_failed"),
        (UpstreamTimeout("no"), False, 200, "stream_broken"),
        (ClientGone("no"), False, 499, "client_gone"),
    ],
    ids=["rejected", "upstream_failed", "stream_broken", "client_gone"],
)
async def test_each_ending_has_its_word(
    error: Exception, complete: bool, status: int, outcome: str
) -> None:
    """The same word in the log and in the metrics, and the code of what went wrong."""
    sent = status if complete else 200
    observed = Observed(answering(status=sent, complete=complete, note=failing(error)))

    await observed.drive()

    assert observed.line["outcome"] == outcome
    assert observed.line["status"] == status
    assert observed.line["code"] == getattr(error, "code", None)
    assert observed.counted(status=str(status), outcome=outcome) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(ClientGone("no"), 499), (Stopped("no"), 503)], ids=["gone", "stopped"]
)
async def test_what_ended_before_an_answer_has_the_status_of_its_failure(
    error: ProxyError, status: int
) -> None:
    """Nothing was sent, so there is no other."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        get_context(scope).failure = error

    observed = Observed(app)

    await observed.drive()

    assert observed.line["status"] == status


@pytest.mark.parametrize(
    ("ending", "said", "outcome"),
    [
        (Ending.CHAT, b"data: [DONE]\n\n", "completed"),
        (Ending.CHAT, b"data: {}\n\n", "client_gone"),
        (Ending.UNKNOWN, b"data: {}\n\n", "client_gone"),
    ],
    ids=["all_was_said", "in_the_middle", "who_knows"],
)
async def test_whoever_leaves_with_the_whole_answer_has_not_left_early(
    ending: Ending, said: bytes, outcome: str
) -> None:
    """Client libraries hang up at the last word, before the end of the body."""

    def note(ctx: RequestContext) -> None:
        ctx.failure = ClientGone("left")
        ctx.tail = StreamTail(ending)
        ctx.tail.note(said)

    observed = Observed(answering(chunks=(said,), complete=False, note=note))

    await observed.drive()

    assert observed.line["outcome"] == outcome
    assert (observed.line["code"] is None) == (outcome == "completed")


async def test_a_crash_outside_of_all_layers_is_written_down_and_raised() -> None:
    """Whatever escapes, the books are kept."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("bug")

    observed = Observed(app)

    seen = await observed.drive()

    assert isinstance(seen.raised, RuntimeError)
    assert observed.line["outcome"] == "failed"
    assert sample(observed.metrics.render(), "llmproxy_inflight_requests") == 0


async def test_a_shutdown_is_written_down_as_one() -> None:
    """Stopped is neither the client's doing nor a bug."""
    started = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    observed = Observed(app)
    request = asyncio.create_task(observed.drive())
    await cancel_in_flight(request, started)

    assert request.cancelled()
    assert observed.line["outcome"] == "stopped"
    assert sample(observed.metrics.render(), "llmproxy_inflight_requests") == 0


async def test_a_request_under_way_is_counted() -> None:
    """How many there are can be seen while there are some."""
    seen: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(sample(observed.metrics.render(), "llmproxy_inflight_requests"))
        await answering()(scope, receive, send)

    observed = Observed(app)

    await asyncio.gather(observed.drive(), observed.drive())

    assert seen == [1, 2]


async def id_given(headers: list[Header]) -> tuple[bytes, dict[str, Any]]:
    observed = Observed(answering(note=from_engine))
    seen = await observed.drive(headers=headers)
    answered = seen.header(b"x-request-id")
    assert answered is not None
    return answered, observed.line


async def test_a_request_without_an_id_gets_one() -> None:
    """The same in the answer, the log, and at the engine; another for each request."""
    first, line = await id_given([])
    second, _ = await id_given([])

    assert re.fullmatch(rb"[0-9a-f]{32}", first)
    assert line["request_id"] == line["engine_request_id"] == first.decode()
    assert first != second


async def test_the_callers_id_is_kept_apart_from_the_engines() -> None:
    """A caller finds its own; what the engine is told is ours."""
    answered, line = await id_given([(b"x-request-id", b"mine")])

    assert answered == b"mine"
    assert line["request_id"] == "mine"
    assert line["engine_request_id"] not in (None, "mine")


async def test_an_engine_that_was_not_asked_is_not_named() -> None:
    """No header and no field speaks of an upstream that had no part in it."""
    observed = Observed(answering())

    seen = await observed.drive()

    assert seen.header(b"x-llmproxy-upstream") is None
    assert seen.header(b"x-llmproxy-attempts") is None
    assert observed.line["engine_request_id"] is None


async def test_our_headers_are_added_to_the_answers_own() -> None:
    """In the order of the answer, ours behind."""
    observed = Observed(answering(note=from_engine))

    seen = await observed.drive()

    assert [name for name, _ in seen.headers] == [
        b"x-a",
        b"x-request-id",
        b"x-llmproxy-upstream",
        b"x-llmproxy-attempts",
    ]


async def test_the_pace_of_a_stream_is_measured_once() -> None:
    """One observation of the first token and one of the mean gap, however many chunks."""

    def note(ctx: RequestContext) -> None:
        from_engine(ctx)
        ctx.tail = StreamTail(Ending.UNKNOWN)
        ctx.first_byte_at = ctx.started_at + 0.2
        ctx.chunks = 11

    observed = Observed(answering(note=note))

    await observed.drive()

    exposition = observed.metrics.render()
    assert sample(exposition, "llmproxy_time_to_first_token_seconds_count", upstream="gpu1") == 1
    assert sample(exposition, "llmproxy_inter_token_seconds_count", upstream="gpu1") == 1
    assert observed.line["first_token_ms"] == pytest.approx(200)
    assert observed.line["stream"] is True


async def test_a_single_chunk_has_no_gap() -> None:
    """There is nothing to measure between one thing."""

    def note(ctx: RequestContext) -> None:
        ctx.tail = StreamTail(Ending.UNKNOWN)
        ctx.first_byte_at = ctx.started_at
        ctx.chunks = 1

    observed = Observed(answering(note=note))

    seen = await observed.drive()

    exposition = observed.metrics.render()
    assert seen.raised is None
    assert sample(exposition, "llmproxy_inter_token_seconds_count", upstream="") == 0
    assert sample(exposition, "llmproxy_time_to_first_token_seconds_count", upstream="") == 1


async def test_waiting_for_engines_is_not_our_overhead() -> None:
    """Overhead is what is left of the whole."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        get_context(scope).waited = 0.04
        await answering()(scope, receive, send)

    observed = Observed(app)

    await observed.drive()

    line = observed.line
    assert line["duration_ms"] > 40
    assert line["overhead_ms"] == pytest.approx(line["duration_ms"] - 40, abs=0.01)


async def test_a_long_path_or_model_is_cut_in_the_log() -> None:
    """A line has an end, whatever a caller sends."""

    def note(ctx: RequestContext) -> None:
        ctx.inference = InferenceRequest(model="m" * 10_000)

    observed = Observed(answering(note=note))

    await observed.drive(path="/" + "x" * 10_000)

    assert len(observed.line["path"]) == len(observed.line["model"]) == 256


async def test_a_log_that_nobody_wants_is_not_written() -> None:
    """The measurements still are."""
    observed = Observed(answering())
    observed.log.enabled = False

    await observed.drive()

    assert observed.log.lines == []
    assert observed.counted(status="200", outcome="completed") == 1


STREAM = chat_events(["Hel", "lo"])
STREAM_HEAD = [(b"content-type", b"text/event-stream")]
COUNTED = b'data: {"choices":[],"usage":{"prompt_tokens":30,"completion_tokens":2}}\n\n'


def tapped(
    chunks: Sequence[bytes], *, status: int = 200, complete: bool = True, principal: str = ""
) -> ASGIApp:
    """Return an app that is metered and answers with a stream."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        ctx.upstream, ctx.attempts = "gpu1", 1
        ctx.inference = InferenceRequest("m", stream=True, prompt_bytes=400)
        ctx.tap = UsageTap(CHAT, ctx.inference)
        if principal:
            ctx.principal = Principal("id-1", principal, team="blue")
        await send({"type": "http.response.start", "status": status, "headers": STREAM_HEAD})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def tokens(observed: Observed, model: str = "m") -> dict[str, float]:
    told = observed.metrics.render()
    name = "llmproxy_tokens_total"
    return {kind: sample(told, name, model=model, kind=kind) for kind in ("prompt", "completion")}


async def test_what_was_used_is_written_down() -> None:
    """As the model server has counted it."""
    observed = Observed(tapped([*STREAM[:-1], COUNTED, STREAM[-1]]))

    await observed.drive()

    assert observed.line["prompt_tokens"] == 30
    assert observed.line["completion_tokens"] == 2
    assert observed.line["tokens_estimated"] is None
    assert tokens(observed) == {"prompt": 30, "completion": 2}


async def test_an_estimate_is_called_one() -> None:
    """Whoever reads the log must not take it for a bill."""
    observed = Observed(tapped(STREAM))

    await observed.drive()

    assert (observed.line["prompt_tokens"], observed.line["completion_tokens"]) == (100, 2)
    assert observed.line["tokens_estimated"] is True


async def test_a_stream_that_broke_has_used_what_it_had_sent() -> None:
    """The tap hears of every chunk, and of an end only if there was one."""
    observed = Observed(tapped(STREAM[:1], complete=False))

    await observed.drive()

    assert observed.line["completion_tokens"] == 1
    assert tokens(observed, "other") == {"prompt": 100, "completion": 1}


@pytest.mark.parametrize("status", [400, 503])
async def test_a_refusal_has_used_nothing(status: int) -> None:
    """There is no field and no series for it."""
    observed = Observed(tapped([COUNTED], status=status))

    await observed.drive()

    assert observed.line["prompt_tokens"] is None
    assert observed.line["completion_tokens"] is None
    assert b"llmproxy_tokens_total{" not in observed.metrics.render()


async def test_what_a_caller_who_left_is_charged_is_told() -> None:
    """In the place of what was counted, and also where nothing was sent that could be."""

    async def leaving(scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        ctx.inference = InferenceRequest(model="m")
        ctx.tap = UsageTap(CHAT, ctx.inference)
        ctx.charged = Usage(prompt=100, estimated=True)
        ctx.failure = ClientGone("no")

    observed = Observed(leaving)
    await observed.drive()

    line = observed.line
    assert (line["prompt_tokens"], line["completion_tokens"]) == (100, 0)
    assert line["tokens_estimated"]
    assert tokens(observed, "other") == {"prompt": 100, "completion": 0}


async def test_the_end_is_told_to_the_tap() -> None:
    """An answer without a last word of its own is complete when it is over."""
    finished: list[bool] = []
    app = tapped([b'data: {"choices":[]}\n\n'])

    async def asking(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        tap = get_context(scope).tap
        assert tap is not None
        finished.append(tap.finished)

    await Observed(asking).drive()

    assert finished == [True]


async def test_what_somebody_else_tells_the_tap_is_not_told_twice() -> None:
    """A layer that looks at every piece tells of them itself; the end it does not know."""
    seen: list[tuple[int, bool]] = []
    last = {"type": "http.response.body", "body": STREAM[0], "more_body": False}

    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        tap = ctx.tap = UsageTap(CHAT, InferenceRequest("m", stream=True))
        trace = tap.watch()
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEAD})
        trace.note(STREAM[0])
        await send({**last, "more_body": True})
        seen.append((tap.tokens_so_far, tap.finished))
        await send(last)
        seen.append((tap.tokens_so_far, tap.finished))

    await Observed(telling).drive()

    assert seen == [(1, False), (1, True)]


class Wire(Writer):
    """A server that takes pieces at once, as ours does."""

    async def send(self, message: Message) -> None:
        """Take it."""

    def begin(self, status: int, headers: list[Header], lines: bytes = b"") -> None:
        """Take it."""

    def write(self, body: bytes) -> bool:
        return True

    def end(self, body: bytes) -> bool:
        return True


@pytest.mark.parametrize("way", ["one_message", "messages", "at_once", "pieces_at_once"])
async def test_however_an_answer_is_sent_the_tap_is_told_of_it(way: str) -> None:
    """Of all of it, once."""
    answer = b'{"choices":[],"usage":{"prompt_tokens":30,"completion_tokens":2}}'
    head = [(b"content-type", b"application/json")]
    pieces = [answer] if way == "one_message" else [answer[:9], answer[9:40], answer[40:]]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        ctx.tap = UsageTap(CHAT, InferenceRequest("m"))
        writer = present(writer_of(send), "writer")
        if way == "at_once":
            writer.begin(200, head)
            writer.end(answer)
            return
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for piece in pieces[:-1]:
            if way == "messages":
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            else:
                writer.write(piece)
        await send({"type": "http.response.body", "body": pieces[-1], "more_body": False})

    observed = Observed(app)
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": None}

    async def receive() -> Message:
        raise AssertionError

    await observed.app(scope, receive, Wire().send)

    assert (observed.line["prompt_tokens"], observed.line["completion_tokens"]) == (30, 2)
    assert observed.line["tokens_estimated"] is None


async def test_the_line_says_who_was_calling() -> None:
    """By the name that the operator has given, never by the key."""
    observed = Observed(tapped(STREAM, principal="ada"))

    await observed.drive()

    assert (observed.line["principal"], observed.line["team"]) == ("ada", "blue")


async def test_limits_are_told_in_the_head_and_only_ours() -> None:
    """A cloud behind us has limits too, which are between it and us."""
    theirs = [(b"x-ratelimit-limit-requests", b"9000"), (b"x-a", b"1")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        get_context(scope).limit_lines = b"x-ratelimit-limit-requests: 60\r\n"
        await send({"type": "http.response.start", "status": 200, "headers": theirs})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    seen = await Observed(app).drive()

    assert seen.header(b"x-ratelimit-limit-requests") == b"60"
    assert seen.header(b"x-a") == b"1"
    assert theirs == [(b"x-ratelimit-limit-requests", b"9000"), (b"x-a", b"1")]


_FORK = """
import os
from llmproxy.middleware.observe import new_name
new_name()
child = os.fork()
if child:
    os.waitpid(child, 0)
print(new_name(), flush=True)
"""


def test_a_fork_of_us_gives_names_of_its_own() -> None:
    """They are drawn in advance, and a host may fork its workers after that."""
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=True)
    names = done.stdout.split()

    assert len(names) == 2
    assert len({*names}) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)

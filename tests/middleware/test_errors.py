"""What went wrong becomes what the caller is told."""

import asyncio
import json
import logging

import pytest

from llmproxy.context import get_context
from llmproxy.errors import (
    ClientGone,
    InvalidRequest,
    Overloaded,
    ProxyError,
    UpstreamBroken,
    UpstreamTimeout,
)
from llmproxy.middleware.errors import ErrorsMiddleware
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.records import Ending
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send
from tests.support.asgi import Exchange, cancel_in_flight, drive
from tests.support.builders import make_context


def noting(app: ASGIApp) -> ASGIApp:
    """Note in the context what was sent, as the outermost layer does."""

    async def observed(scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                ctx.status = message["status"]
            elif not message.get("more_body", False):
                ctx.complete = True
            await send(message)

        await app(scope, receive, send_noted)

    return observed


def streaming(*chunks: bytes, then: BaseException, ending: Ending | None = Ending.CHAT) -> ASGIApp:
    """Return an app that streams and fails."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tail = get_context(scope).tail = StreamTail(ending) if ending is not None else None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in chunks:
            if tail is not None:
                tail.note(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        raise then

    return app


def raising(error: Exception) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


async def told(app: ASGIApp) -> Exchange:
    return await drive(noting(ErrorsMiddleware(app)), ctx=make_context())


async def test_an_error_before_the_answer_is_the_answer() -> None:
    """Status, OpenAI's object, and the headers that go with it."""
    seen = await told(raising(Overloaded("Full.", retry_after=7)))

    assert seen.raised is None
    assert seen.status == 503
    assert seen.header(b"content-type") == b"application/json"
    assert seen.header(b"retry-after") == b"7"
    assert json.loads(seen.body) == {
        "error": {"message": "Full.", "type": "server_error", "param": None, "code": "overloaded"}
    }
    assert seen.complete


async def test_the_parameter_that_was_wrong_is_named() -> None:
    """An SDK shows it to whoever wrote the call."""
    seen = await told(raising(InvalidRequest("Wrong.", param="model")))

    assert json.loads(seen.body)["error"]["param"] == "model"


async def test_a_bug_of_ours_is_a_500_that_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The text of an exception may hold a prompt or a key: it goes to the operator alone."""
    with caplog.at_level(logging.ERROR):
        seen = await told(raising(RuntimeError("canary")))

    assert seen.raised is None
    assert seen.status == 500
    assert b"canary" not in seen.body
    assert b"RuntimeError" not in seen.body
    assert json.loads(seen.body)["error"]["code"] == "internal_error"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.__dict__["request_id"] == "request-1"


async def test_the_failure_is_noted_for_the_books() -> None:
    """The layer outside of us has to write it down."""
    error = UpstreamBroken("Gone.")
    ctx = make_context()

    await drive(noting(ErrorsMiddleware(raising(error))), ctx=ctx)

    assert ctx.failure is error


async def test_a_bug_keeps_its_cause() -> None:
    """What is noted is ours; what happened stands behind it."""
    bug = RuntimeError("bug")
    ctx = make_context()

    await drive(noting(ErrorsMiddleware(raising(bug))), ctx=ctx)

    assert ctx.failure is not None
    assert ctx.failure.code == "internal_error"
    assert ctx.failure.__cause__ is bug


async def test_a_stream_that_fails_gets_its_last_event_and_no_end() -> None:
    """The unfinished event is closed, the error told, the connection left to be cut."""
    seen = await told(streaming(b"data: {}\n\n", b"data: {", then=UpstreamTimeout("Slow.")))

    *_, last = seen.chunks
    assert last.startswith(b'\n\ndata: {"error":{"message":"Slow.",')
    assert last.endswith(b'"code":"upstream_timeout"}}\n\n')
    assert not seen.complete
    assert isinstance(seen.raised, UpstreamTimeout)


@pytest.mark.parametrize("ending", [None, Ending.UNKNOWN], ids=["no_stream", "unknown_stream"])
async def test_whoever_knows_no_error_event_is_only_cut(ending: Ending | None) -> None:
    """JSON and what we know nothing of get not a byte more."""
    seen = await told(streaming(b"{", then=UpstreamBroken("Gone."), ending=ending))

    assert seen.chunks == [b"{"]
    assert not seen.complete
    assert isinstance(seen.raised, UpstreamBroken)


async def test_an_error_that_the_engine_has_told_is_not_told_twice() -> None:
    """Its own words stay the last."""
    own = b'data: {"error":{"message":"its own"}}\n\n'

    seen = await told(streaming(own, then=UpstreamBroken("Gone.")))

    assert seen.chunks == [own]
    assert not seen.complete


async def test_a_client_that_left_is_told_nothing() -> None:
    """There is nobody to read it; and nothing is raised at the server for it."""
    before = await told(raising(ClientGone("Left.")))
    within = await told(streaming(b"data: {}\n\n", then=ClientGone("Left.")))

    assert before.status is None
    assert before.raised is None
    assert within.chunks == [b"data: {}\n\n"]
    assert within.raised is None


async def test_a_failure_after_the_whole_answer_disturbs_nobody() -> None:
    """What fails while the books are settled is not the client's concern."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all", "more_body": False})
        raise UpstreamBroken("Late.")

    seen = await told(app)

    assert seen.complete
    assert seen.chunks == [b"all"]
    assert seen.raised is None


async def test_a_stop_is_told_to_those_who_are_being_answered() -> None:
    """A running stream ends by its error event before the process does."""
    started = asyncio.Event()
    seen = Exchange()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tail = get_context(scope).tail = StreamTail(Ending.CHAT)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        tail.note(b"data: {}\n\n")
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        started.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(
        drive(noting(ErrorsMiddleware(app)), ctx=make_context(), seen=seen)
    )
    await cancel_in_flight(request, started)

    assert request.cancelled()
    assert b'"code":"stopped"' in seen.chunks[-1]
    assert not seen.complete


async def test_nobody_waits_for_a_client_that_does_not_take_its_last_words() -> None:
    """A reader that stands still holds the request for a second, not for ever."""
    never = asyncio.Event()

    seen = await drive(
        noting(ErrorsMiddleware(streaming(b"data: {}\n\n", then=UpstreamBroken("Gone.")))),
        ctx=make_context(),
        take_when=lambda number: never if number == 1 else None,
    )

    assert seen.chunks == [b"data: {}\n\n"]
    assert isinstance(seen.raised, UpstreamBroken)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_an_error_answers_every_method(method: str) -> None:
    """HEAD too: the server leaves the body out."""
    seen = await drive(
        noting(ErrorsMiddleware(raising(InvalidRequest("Wrong.")))),
        ctx=make_context(),
        method=method,
    )

    assert seen.status == 400
    assert seen.complete


def leaves(kind: type[ProxyError]) -> list[type[ProxyError]]:
    """Return the errors that can be raised."""
    found = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return found + ([kind] if hasattr(kind, "code") else [])


@pytest.mark.parametrize(
    "kind",
    [each for each in leaves(ProxyError) if each is not ClientGone],
    ids=lambda each: each.__name__,
)
async def test_every_error_is_answered_as_its_class_says(kind: type[ProxyError]) -> None:
    """Status and code come from the class, for each there is."""
    takes_time = issubclass(kind, Overloaded.__mro__[1])
    error = kind("Said.", retry_after=1) if takes_time else kind("Said.")  # type: ignore[call-arg]

    seen = await told(raising(error))

    assert seen.status == kind.status
    assert json.loads(seen.body)["error"]["code"] == kind.code

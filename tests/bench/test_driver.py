"""The strict driver objects to what a server would reject, and leaves as a client would."""

import asyncio
from typing import Any

import pytest

from llmproxy.types import Message, Receive, Scope, Send
from tests.support.asgi import Exchange, drive

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


def chunk(data: Any = b"a", more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def head(*headers: Any, status: Any = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


WRONG = {
    "body_first": [chunk()],
    "started_twice": [START, START],
    "body_after_the_end": [START, END, chunk()],
    "unknown_message": [START, {"type": "http.response.nonsense"}],
    "status_as_text": [head(status="200")],
    "status_below_200": [head(status=103)],
    "status_600": [head(status=600)],
    "name_as_text": [head(("a", b"b"))],
    "value_as_text": [head((b"a", "b"))],
    "name_in_capitals": [head((b"X-A", b"b"))],
    "name_with_a_blank": [head((b"x a", b"b"))],
    "empty_name": [head((b"", b"b"))],
    "value_with_a_line": [head((b"a", b"b\r\nc: d"))],
    "two_lengths": [head((b"content-length", b"1"), (b"content-length", b"1"))],
    "own_framing": [head((b"transfer-encoding", b"chunked"))],
    "body_as_text": [START, chunk("a")],
    "longer_than_its_length": [head((b"content-length", b"1")), chunk(b"ab")],
    "shorter_than_its_length": [head((b"content-length", b"2")), chunk(b"a", more=False)],
    "body_of_a_204": [head(status=204), chunk(b"a")],
}


@pytest.mark.parametrize("messages", WRONG.values(), ids=WRONG.keys())
async def test_what_a_server_would_reject_fails_the_test(messages: list[Message]) -> None:
    """It is not recorded as something that the client saw."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    with pytest.raises(AssertionError):
        await drive(app)


async def test_two_receivers_fail_the_test() -> None:
    """Only one may own `receive`: the other would take its messages away."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.gather(receive(), receive())

    with pytest.raises(AssertionError, match="two tasks"):
        await drive(app)


async def test_an_app_that_is_stuck_fails_the_test() -> None:
    """In words, and without taking the suite with it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match="stuck"):
        await drive(app, patience=0.05)


async def test_an_error_of_the_app_is_part_of_the_exchange() -> None:
    """With everything that the client had seen by then."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(chunk())
        raise LookupError

    seen = await drive(app)

    assert isinstance(seen.raised, LookupError)
    assert seen.chunks == [b"a"] and not seen.complete


async def test_a_body_comes_in_pieces() -> None:
    """As many messages as there are pieces; the last one says so."""
    got: list[tuple[bytes, bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            message = await receive()
            got.append((message["body"], message["more_body"]))
        await send(START)
        await send(END)

    await drive(app, body=[b"a", b"", b"b"])

    assert got == [(b"a", True), (b"", True), (b"b", False)]


@pytest.mark.parametrize(
    ("options", "received", "chunks"),
    [
        ({"leave_after": 0}, ["http.request", "http.disconnect"], []),
        ({"leave_after": 2}, ["http.request", "http.disconnect"], [b"a", b"a"]),
        ({"leave_in_body": 0}, ["http.disconnect", "http.disconnect"], []),
        ({"leave_in_body": 1}, ["http.request", "http.disconnect"], []),
        ({}, ["http.request", "http.disconnect"], [b"a"] * 4 + [b""]),
    ],
    ids=["before_the_answer", "after_two_chunks", "before_the_body", "in_the_body", "to_the_end"],
)
async def test_a_client_leaves(
    options: dict[str, Any], received: list[str], chunks: list[bytes]
) -> None:
    """The app is told by `receive` alone: `send` goes on as if nothing had happened."""
    got: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append((await receive())["type"])
        if options.get("leave_after") == 0 or "leave_in_body" in options:
            got.append((await receive())["type"])
        await send(START)
        for _ in range(4):
            await send(chunk())
        await send(END)
        if len(got) == 1:
            got.append((await receive())["type"])

    seen = await drive(app, **options)

    assert got == received
    assert seen.chunks == chunks
    assert seen.raised is None


async def test_a_client_leaves_when_it_is_told() -> None:
    """While the app waits for something else."""
    leave = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        leave.set()
        assert (await receive())["type"] == "http.disconnect"

    seen = await drive(app, leave_when=leave)

    assert seen.status == 200 and not seen.complete


async def test_a_slow_client_blocks_send() -> None:
    """Until it takes the chunk, or leaves."""
    take = asyncio.Event()
    passed: list[int] = []
    seen = Exchange()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(3):
            await send(chunk(b"%d" % number))
            passed.append(number)
        await send(END)

    driving = asyncio.create_task(
        drive(app, seen=seen, take_when=lambda number: take if number == 1 else None)
    )
    await seen.has_chunks(1)
    await asyncio.sleep(0)
    before = list(passed)
    take.set()
    await driving

    assert before == [0]
    assert seen.chunks == [b"0", b"1", b"2", b""]

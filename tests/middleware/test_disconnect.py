"""The layer that owns `receive`, and the traps around it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmproxy.context import get_context
from llmproxy.errors import ClientGone
from llmproxy.middleware.disconnect import DisconnectMiddleware
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send
from llmproxy.upload import IncomingUpload
from tests.support.asgi import Exchange, cancel_in_flight, drive
from tests.support.builders import make_context
from tests.support.calls import settle

HEAD: Message = {"type": "http.response.start", "status": 200, "headers": []}


def chunk(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def with_body_read(app: ASGIApp) -> ASGIApp:
    """Do what the layers outside do: read the body, note what is sent."""

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)
        if isinstance(ctx.body, bytes):
            await receive()
        else:
            ctx.body = IncomingUpload(receive, length=None, limit=1000, within=5)

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.body" and not message["more_body"]:
                ctx.complete = True
            await send(message)

        await app(scope, receive, send_noted)

    return outside


def watching(app: ASGIApp) -> ASGIApp:
    return with_body_read(DisconnectMiddleware(app))


async def test_a_hang_up_cancels_what_is_going_on() -> None:
    """Whatever it waits for, it is stopped where it stands, and can clean up."""
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    seen = await drive(watching(app), ctx=make_context(), leave_after=0)

    assert isinstance(seen.raised, ClientGone)
    assert events == ["cancelled"]


async def test_a_hang_up_ends_a_stream() -> None:
    """Few chunks go nowhere before it is noticed."""
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(HEAD)
        while True:
            await send(chunk(b"x"))
            sent += 1

    seen = await drive(watching(app), ctx=make_context(), leave_after=3)

    assert isinstance(seen.raised, ClientGone)
    assert sent < 10


async def test_work_after_the_last_chunk_is_left_alone() -> None:
    """A complete response is no hang-up, although the server reports one."""
    events: list[str] = []

    async def settles_late(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        await send(chunk(b"all", more=False))
        await asyncio.sleep(0.01)
        events.append("settled")

    seen = await drive(watching(settles_late), ctx=make_context())

    assert seen.raised is None
    assert events == ["settled"]


async def test_a_cancellation_from_outside_stays_a_cancellation() -> None:
    """A shutdown is not reported as the client's doing."""
    started = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(drive(watching(app), ctx=make_context()))
    await cancel_in_flight(request, started)

    assert request.cancelled()


async def test_a_shutdown_while_the_client_leaves_is_a_shutdown() -> None:
    """Two ask for the end; the one who is not answered by us wins."""
    started = asyncio.Event()
    leave = asyncio.Event()
    cleaning = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cleaning.set()
            await asyncio.Event().wait()

    request = asyncio.create_task(drive(watching(app), ctx=make_context(), leave_when=leave))
    await started.wait()
    leave.set()
    await cleaning.wait()
    request.cancel()
    await asyncio.wait([request])

    assert request.cancelled()


async def test_nobody_further_in_reads_from_the_server() -> None:
    """Two readers of `receive` would take each other's messages: inside there is one message."""
    got: list[Message] = []
    leave = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            got.append(await receive())

        listener = asyncio.create_task(listen())
        await settle()
        leave.set()
        try:
            await asyncio.Event().wait()
        finally:
            await listener

    await drive(watching(app), ctx=make_context(), leave_when=leave)

    assert got == [{"type": "http.disconnect"}]


@pytest.mark.parametrize("fails", [False, True], ids=["complete", "failed"])
async def test_no_watcher_is_left_behind(fails: bool) -> None:
    """A request that is over leaves no task, also where the server has nothing more to report."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        if fails:
            raise ValueError
        await send(chunk(b"", more=False))

    before = asyncio.all_tasks()
    await drive(watching(app), ctx=make_context())
    await settle()

    assert asyncio.all_tasks() == before


async def test_what_fails_inside_passes() -> None:
    """An error is not taken for a hang-up."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    seen = await drive(watching(app), ctx=make_context())

    assert isinstance(seen.raised, ValueError)


async def test_an_upload_is_watched_once_it_is_through() -> None:
    """It owns `receive` until then; whoever leaves after it is noticed."""
    leave = asyncio.Event()
    seen = Exchange()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = get_context(scope).body
        assert isinstance(body, IncomingUpload)
        assert [piece async for piece in body] == [b"a", b"b"]
        leave.set()
        await asyncio.Event().wait()

    await drive(
        watching(app), ctx=make_context(body=None), body=[b"a", b"b"], leave_when=leave, seen=seen
    )

    assert isinstance(seen.raised, ClientGone)


async def test_an_upload_notices_the_hang_up_itself() -> None:
    """While it is read, reading tells."""

    async def pieces(upload: IncomingUpload) -> AsyncIterator[bytes]:
        async for piece in upload:
            yield piece

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = get_context(scope).body
        assert isinstance(body, IncomingUpload)
        async for _ in pieces(body):
            pass

    seen = await drive(
        watching(app), ctx=make_context(body=None), body=[b"a", b"b"], leave_in_body=1
    )

    assert isinstance(seen.raised, ClientGone)

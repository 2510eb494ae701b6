"""The body is given back to an app that is not ours."""

import asyncio

from llmproxy.errors import ClientGone
from llmproxy.middleware.replay import ReplayMiddleware
from llmproxy.types import Message, Receive, Scope, Send
from llmproxy.upload import IncomingUpload
from tests.support.asgi import drive
from tests.support.builders import make_context


class Host:
    """A foreign app that reads its body as every framework does."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.got: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(self.messages):
            self.got.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def test_a_body_comes_as_one_message() -> None:
    """The very bytes."""
    body = b'{"model":"m"}'
    host = Host(1)

    await drive(ReplayMiddleware(host), ctx=make_context(body=body))

    assert host.got == [{"type": "http.request", "body": body, "more_body": False}]
    assert host.got[0]["body"] is body


async def test_a_body_that_was_changed_comes_as_it_is_now() -> None:
    """With the length that it has now: a host may rely on it."""
    outgoing = b'{"stream_options":{},"model":"m"}'
    host = Host(1)
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await host(scope, receive, send)

    headers = [(b"content-length", b"13"), (b"x-a", b"b")]
    ctx = make_context(body=b'{"model":"m"}', outgoing=outgoing)
    await drive(ReplayMiddleware(app), ctx=ctx, headers=headers)

    assert host.got[0]["body"] is outgoing
    assert scopes[0]["headers"] == [(b"content-length", b"33"), (b"x-a", b"b")]
    assert headers == [(b"content-length", b"13"), (b"x-a", b"b")]


async def test_an_empty_body_is_a_message_too() -> None:
    """A framework waits for one."""
    host = Host(1)

    await drive(ReplayMiddleware(host), ctx=make_context(body=b""))

    assert host.got == [{"type": "http.request", "body": b"", "more_body": False}]


async def test_an_upload_comes_piece_by_piece() -> None:
    """With an end that says so."""
    taken = iter([b"a", b"b"])

    async def receive() -> Message:
        piece = next(taken)
        return {"type": "http.request", "body": piece, "more_body": piece == b"a"}

    host = Host(3)
    upload = IncomingUpload(receive, length=None, limit=100, within=5)

    await drive(ReplayMiddleware(host), ctx=make_context(body=upload))

    assert [message["body"] for message in host.got] == [b"a", b"b", b""]
    assert [message["more_body"] for message in host.got] == [True, True, False]


async def test_after_the_body_the_host_hears_what_the_server_says() -> None:
    """A host that waits for the disconnect gets it."""
    left = asyncio.Event()
    host = Host(2)

    async def hang_up() -> None:
        while not host.got:  # noqa: ASYNC110  # the host announces nothing
            await asyncio.sleep(0)
        left.set()

    leaving = asyncio.create_task(hang_up())
    await drive(ReplayMiddleware(host), ctx=make_context(), body=[], leave_when=left)
    await leaving

    assert host.got[1] == {"type": "http.disconnect"}


async def test_an_upload_that_breaks_off_is_told_by_its_error() -> None:
    """The frame around it knows what to make of that."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    upload = IncomingUpload(receive, length=None, limit=100, within=5)

    seen = await drive(ReplayMiddleware(Host(1)), ctx=make_context(body=upload))

    assert isinstance(seen.raised, ClientGone)

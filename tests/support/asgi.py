"""Drive an ASGI app the way a real server would, and be as strict as one.

Neither httpx.ASGITransport nor Starlette's TestClient can show a streamed chunk before
the app has finished, or a client that leaves half way. This driver can. Two habits of uvicorn
are copied: silence after a hang-up, and a disconnect after a complete response.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llmproxy.context import SCOPE_KEY, RequestContext
from llmproxy.types import ASGIApp, Header, Message, Scope

# What uvicorn refuses, and upper case, which ASGI forbids.
_BAD_NAME = re.compile(rb'[\x00-\x20\x7f()<>@,;:\[\]={}\\"A-Z]')
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
STUCK = 5.0  # seconds


@dataclass(slots=True)
class Exchange:
    """All that the client saw, plus what escaped from the app."""

    status: int | None = None
    headers: list[Header] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False
    raised: BaseException | None = None
    taken: int = 0  # parts of the request body that the app has asked for
    after_leaving: int = 0  # messages sent to a client that was gone
    started: asyncio.Event = field(default_factory=asyncio.Event)  # the head is out
    chunk_sent: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks)

    def header(self, name: bytes) -> bytes | None:
        """Return the one value of a header; a header given twice fails the test."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name!r} was sent {len(found)} times"
        return found[0] if found else None

    async def has_chunks(self, count: int) -> None:
        """Wait until so many body messages were sent."""
        async with self.chunk_sent, asyncio.timeout(STUCK):
            await self.chunk_sent.wait_for(lambda: len(self.chunks) >= count)


async def drive(
    app: ASGIApp,
    *,
    ctx: RequestContext | None = None,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    raw_path: bytes | None = None,
    query: bytes = b"",
    root_path: str = "",
    headers: Sequence[Header] = (),
    body: bytes | Sequence[bytes] = b"{}",
    client: tuple[str, int] | None = ("192.0.2.7", 50000),
    http_version: str = "1.1",
    extra: Mapping[str, Any] | None = None,
    leave_after: int | None = None,
    leave_in_body: int | None = None,
    leave_when: asyncio.Event | None = None,
    body_when: Callable[[int], asyncio.Event | None] | None = None,
    take_when: Callable[[int], asyncio.Event | None] | None = None,
    seen: Exchange | None = None,
    patience: float = STUCK,
) -> Exchange:
    """Send one request through `app` and return what its client saw.

    Several pieces of `body` come as several messages. The client hangs up after
    `leave_after` chunks (0 = before the first byte, as soon as the body is read), after
    `leave_in_body` pieces of its own body, or when an event is set. `body_when(n)` names an
    event for which piece n of the body waits, `take_when(n)` one for which `send` of chunk n
    blocks, as it does with a client that has stopped reading. Pass `seen` to look at the
    exchange while it goes on.
    """
    seen = seen or Exchange()
    pieces = [body] if isinstance(body, bytes) else list(body)
    gone = asyncio.Event()
    over = asyncio.Event()  # like uvicorn: set by a hang-up and by a complete response alike
    receiving = False
    expected: int | None = None  # what the app's Content-Length promised
    started = False
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": http_version,
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode() if raw_path is None else raw_path,
        "query_string": query,
        "root_path": root_path,
        "headers": list(headers),
        "client": client,
        "server": ("127.0.0.1", 4000),
        "state": {},
        **(extra or {}),
    }
    if ctx is not None:
        scope[SCOPE_KEY] = ctx

    def leave() -> None:
        gone.set()
        over.set()

    async def receive() -> Message:
        nonlocal receiving
        assert not receiving, "two tasks call receive(): only one may own it"
        receiving = True
        try:
            if leave_in_body is not None and seen.taken >= leave_in_body:
                leave()
            if over.is_set() or seen.taken == len(pieces):
                if leave_after == 0:
                    leave()
                await over.wait()
                return {"type": "http.disconnect"}
            if body_when is not None and (hold := body_when(seen.taken)) is not None:
                await _either(hold, over)
                if over.is_set():
                    return {"type": "http.disconnect"}
            piece = pieces[seen.taken]
            seen.taken += 1
            more = seen.taken < len(pieces) or leave_in_body is not None
            return {"type": "http.request", "body": piece, "more_body": more}
        finally:
            receiving = False

    async def send(message: Message) -> None:
        nonlocal expected, started
        await asyncio.sleep(0)  # a real server may suspend here
        if gone.is_set():
            seen.after_leaving += 1
            return  # uvicorn drops messages silently once the client has left
        kind = message["type"]
        if not started:
            assert kind == "http.response.start", f"{kind} before the response start"
            started = True
            seen.status, seen.headers = message["status"], list(message.get("headers", ()))
            expected = _checked_head(message, method)
            seen.started.set()
            return
        assert not seen.complete, f"{kind} after the end of the response"
        assert kind == "http.response.body", f"{kind} after the response start"
        data = message.get("body", b"")
        assert isinstance(data, bytes | bytearray | memoryview), f"{type(data)} as a body"
        if take_when is not None and (hold := take_when(len(seen.chunks))) is not None:
            await _either(hold, gone)
            if gone.is_set():
                return
        seen.chunks.append(data)  # type: ignore[arg-type]  # the very object, whatever it is
        seen.complete = not message.get("more_body", False)
        if expected is not None:
            expected -= len(data)
            assert expected >= 0, "the body is longer than its Content-Length"
            assert expected == 0 or not seen.complete, "the body is shorter than Content-Length"
        if leave_after is not None and len(seen.chunks) >= leave_after > 0:
            leave()
        if seen.complete:
            over.set()
        async with seen.chunk_sent:
            seen.chunk_sent.notify_all()

    async def leave_on_signal(signal: asyncio.Event) -> None:
        await signal.wait()
        leave()

    leaver = asyncio.create_task(leave_on_signal(leave_when)) if leave_when is not None else None
    clock = asyncio.timeout(patience)
    try:
        async with clock:
            await app(scope, receive, send)
    except AssertionError:
        raise  # the driver's own objection, never part of the exchange
    except TimeoutError as exc:
        assert not clock.expired(), f"the app was stuck for {patience:g} s: {seen!r}"
        seen.raised = exc
    except Exception as exc:
        seen.raised = exc
    finally:
        if leaver is not None:
            leaver.cancel()
            with suppress(asyncio.CancelledError):
                await leaver
    return seen


async def cancel_in_flight(request: asyncio.Task[Exchange], started: asyncio.Event) -> None:
    """Cancel `request` once its app runs; fail at once, not by hanging, if it never does."""
    reached = asyncio.create_task(started.wait())
    await asyncio.wait([reached, request], timeout=STUCK, return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    assert started.is_set(), f"the app was never reached: {request!r}"
    request.cancel()
    await asyncio.wait([request])


def _checked_head(message: Message, method: str) -> int | None:
    """Object to a head that a server would refuse; return the length it promises."""
    status = message["status"]
    assert type(status) is int and 200 <= status <= 599, f"status {status!r}"
    expected: int | None = None
    for name, value in message.get("headers", ()):
        assert isinstance(name, bytes) and isinstance(value, bytes), f"{name!r}: {value!r}"
        assert name and not _BAD_NAME.search(name), f"header name {name!r}"
        assert not _BAD_VALUE.search(value), f"value of {name!r}: {value!r}"
        if name == b"content-length":
            assert expected is None, "Content-Length was sent twice"
            expected = int(value)
        assert name not in (b"connection", b"transfer-encoding") or value in (
            b"close",
            b"keep-alive",
        ), f"{name!r} is the server's own"
    if method == "HEAD" or status == 304:
        return None  # the length is that of a body that is not sent
    return 0 if status == 204 else expected


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (first, second)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()

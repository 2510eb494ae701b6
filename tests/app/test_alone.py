"""One layer in a foreign app, with the frame that it brings along."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llmproxy.context import get_context
from llmproxy.errors import InvalidRequest
from llmproxy.headers import with_headers
from llmproxy.stack import Frame, Part, alone
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send
from tests.support.client import Answer, raw_client, request_bytes
from tests.support.rig import KeptLog, served_here

LEFT: list[str] = []


class NamesTheModel:
    """A tiny layer: says in a header which model was asked for, and refuses one of them."""

    def __init__(self, app: ASGIApp, header: bytes = b"x-model") -> None:
        self.app = app
        self.header = header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = get_context(scope).inference
        assert asked is not None
        if asked.model == "forbidden":
            raise InvalidRequest("Not this one.", param="model")
        named = (self.header, (asked.model or "").encode())

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = with_headers(message, [named])
            await send(message)

        await self.app(scope, receive, send_named)


class Alone:
    """The same as a host adds it."""

    def __init__(self, app: ASGIApp, *, header: bytes = b"x-model", log: Any = None) -> None:
        frame = Frame(access_log=log) if log is not None else None
        self.app = alone(Part(layer=lambda inner: NamesTheModel(inner, header)), app, frame)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def complete(request: Request) -> Response:
    """Answer as a host's own engine would."""
    return JSONResponse({"got": (await request.body()).decode()})


async def stream(request: Request) -> Response:
    """Stream until the client leaves."""
    await request.body()

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            LEFT.append("stream")
            raise

    return StreamingResponse(events(), media_type="text/event-stream")


async def crash(request: Request) -> Response:
    """Fail as hosts do."""
    raise RuntimeError("canary")


async def size(request: Request) -> Response:
    """Read a form piece by piece."""
    return JSONResponse({"size": sum([len(piece) async for piece in request.stream()])})


def host_app() -> Starlette:
    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/completions", stream, methods=["POST"]),
            Route("/v1/embeddings", crash, methods=["POST"]),
            Route("/v1/audio/transcriptions", size, methods=["POST"]),
            Route("/other", complete, methods=["POST"]),
        ]
    )


async def ask(host: ASGIApp, request: bytes) -> Answer:
    async with served_here(host) as port, raw_client(port=port) as client:
        client.send(request)
        return await client.answer()


async def test_a_layer_works_in_front_of_any_app() -> None:
    """It knows the model; the host gets its body as if nobody had read it."""
    host = host_app()
    host.add_middleware(Alone)
    body = b'{"model": "llama"}'

    answer = await ask(host, request_bytes(body=body))

    assert answer.header(b"x-model") == b"llama"
    assert json.loads(answer.body) == {"got": body.decode()}
    assert answer.header(b"x-request-id") is not None


async def test_what_it_refuses_is_answered_by_the_frame() -> None:
    """The host is not bothered and needs no handler."""
    host = host_app()
    host.add_middleware(Alone)

    answer = await ask(host, request_bytes(body=b'{"model":"forbidden"}'))

    assert answer.status == 400
    assert json.loads(answer.body)["error"]["param"] == "model"


async def test_other_paths_are_left_alone() -> None:
    """What is not addressed to an engine gets no header, no limit and no log line."""
    log = KeptLog()
    host = host_app()
    host.add_middleware(Alone, log=log)

    answer = await ask(host, request_bytes(b"/other", body=b"not json"))

    assert json.loads(answer.body) == {"got": "not json"}
    assert answer.header(b"x-model") is None
    assert answer.header(b"x-request-id") is None
    assert log.lines == []


async def test_two_layers_share_one_frame() -> None:
    """One id, one reading of the body, one line in one log: the outer layer's."""
    outer, inner = KeptLog(), KeptLog()
    host = host_app()
    host.add_middleware(Alone, header=b"x-inner", log=inner)
    host.add_middleware(Alone, header=b"x-outer", log=outer)
    body = b'{"model":"llama"}'

    answer = await ask(host, request_bytes(body=body))

    assert answer.header(b"x-inner") == answer.header(b"x-outer") == b"llama"
    assert answer.header(b"x-request-id") is not None  # which asserts that there is one
    assert json.loads(answer.body) == {"got": body.decode()}
    assert len(outer.lines) == 1
    assert inner.lines == []


async def test_a_form_goes_through_to_the_host() -> None:
    """Piece by piece, with the model found on the way, through two layers as well."""
    host = host_app()
    host.add_middleware(Alone, header=b"x-inner")
    host.add_middleware(Alone, header=b"x-outer")
    form = (
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + b"x" * 300_000
        + b"\r\n--b--\r\n"
    )
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]

    answer = await ask(host, request_bytes(b"/v1/audio/transcriptions", headers=headers, body=form))

    assert json.loads(answer.body) == {"size": len(form)}
    assert answer.header(b"x-outer") == b"whisper"


async def test_a_client_that_leaves_ends_the_hosts_work() -> None:
    """The frame watches for the hang-up where the host did not."""
    LEFT.clear()
    log = KeptLog()
    host = host_app()
    host.add_middleware(Alone, log=log)

    async with served_here(host) as port:
        async with raw_client(port=port) as client:
            client.send(request_bytes(b"/v1/completions"))
            await client.head()
            await client.anything()
        line = await log.line()

    assert LEFT == ["stream"]
    assert line["outcome"] == "client_gone"


async def test_a_crash_of_the_host_stays_the_hosts() -> None:
    """It is written down as a failure, and its text is not shown."""
    log = KeptLog()
    host = host_app()
    host.add_middleware(Alone, log=log)

    answer = await ask(host, request_bytes(b"/v1/embeddings"))

    assert answer.status == 500
    assert b"canary" not in answer.body
    assert len(log.lines) == 1


async def test_lifespan_goes_to_the_host() -> None:
    """Its start and its end are not the layer's."""
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        seen.append("start")
        yield
        seen.append("end")

    host = Starlette(lifespan=lifespan)
    host.add_middleware(Alone)

    async with served_here(host):
        pass

    assert seen == ["start", "end"]

"""The gate before the body, and what can be said only after it."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmproxy.auth.authenticator import Authenticator, Call
from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.keyring import Keyring
from llmproxy.auth.signatures import Signatures
from llmproxy.context import RequestContext, get_context
from llmproxy.errors import (
    AddressNotAllowed,
    InvalidRequest,
    ModelNotAllowed,
    RouteNotAllowed,
    Unauthenticated,
)
from llmproxy.middleware.auth import AuthMiddleware
from llmproxy.middleware.body import BodyMiddleware
from llmproxy.middleware.entrance import EntranceMiddleware
from llmproxy.middleware.errors import ErrorsMiddleware
from llmproxy.middleware.observe import ObserveMiddleware
from llmproxy.protocol.endpoints import MODELS, Paths
from llmproxy.records import Endpoint, InferenceRequest, Principal, Upstream
from llmproxy.server.bounds import Bounds
from llmproxy.stack import Frame, order
from llmproxy.store.memory import MemoryStore
from llmproxy.types import ASGIApp, Header, Receive, Scope, Send
from tests.auth.making import ALICE, bearer, entries
from tests.auth.test_signatures import signed_headers
from tests.support.asgi import Exchange, drive
from tests.support.builders import make_context
from tests.support.client import raw_client
from tests.support.rig import served_here

BOUND = "sk-bound-8f3KpQz71LmX"
CHATTER = "sk-chatter-8f3KpQz71LmX"
NEARBY = "sk-nearby-8f3KpQz71LmX"
SHORT = "sk-short-8f3KpQz71LmX"
ADMIN = "sk-admin-8f3KpQz71LmX"
GIVEN = (
    f"alice:{ALICE},bound:{BOUND};models=llama-*,chatter:{CHATTER};routes=chat|/v1/models"
    f",nearby:{NEARBY};networks=10.0.0.0/8,short:{SHORT};max_tokens=100"
)


def authenticator() -> Authenticator:
    ring = Keyring(ConfiguredKeys(entries(GIVEN), admin_key=ADMIN))
    return Authenticator(keyring=ring, signatures=Signatures(ring.signing, MemoryStore()))


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for everything further in; say who was let in."""
    principal = get_context(scope).principal
    name = principal.name.encode() if principal is not None else b"nobody"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": name, "more_body": False})


async def through(
    *headers: Header, ctx: RequestContext | None = None, layer: ASGIApp | None = None, **more: Any
) -> Exchange:
    """Send a request through the layer, as one whose body has been read."""
    ctx = ctx or make_context()
    ctx.fields = dict(headers)
    gate = AuthMiddleware(layer or inside, authenticator=authenticator())
    return await drive(gate, ctx=ctx, headers=headers, **more)


async def test_a_good_key_is_let_in_under_its_name() -> None:
    """Those further in read who it is."""
    ctx = make_context()
    seen = await through(bearer(ALICE), ctx=ctx)

    assert seen.body == b"alice"
    assert ctx.principal is not None and ctx.principal.id == "key:alice"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("sk-nobody-knows-this")],
        [bearer("")],
        [(b"authorization", b"Basic YWxpY2U6eA==")],
        [(b"cookie", ALICE.encode())],
    ],
)
async def test_a_bad_key_is_refused_before_the_body(headers: list[Header]) -> None:
    """Nothing of it is asked for, so a client that waits for `100 Continue` sends nothing."""
    seen = await through(*headers, query=b"key=" + ALICE.encode() + b"&api_key=" + ALICE.encode())

    assert isinstance(seen.raised, Unauthenticated)
    assert seen.taken == 0


async def test_a_known_key_does_not_suspend() -> None:
    """The gate costs a few microseconds and no turn of the loop."""
    reached: list[Principal | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(get_context(scope).principal)

    async def unused(*_: object) -> Any:
        raise AssertionError

    ctx = make_context(fields=dict([bearer(ALICE)]))
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [bearer(ALICE)],
        "llmproxy.context": ctx,
    }
    running = AuthMiddleware(app, authenticator=authenticator())(scope, unused, unused).__await__()

    with pytest.raises(StopIteration):
        next(running)
    assert reached == [ctx.principal]


async def test_whose_key_was_refused_is_known() -> None:
    """Used from elsewhere or for something else it may be a stolen one: the log has its name."""
    elsewhere = make_context(client="192.0.2.7")
    otherwise = make_context(endpoint=Endpoint("embeddings"), path=b"/v1/embeddings")

    refused = [
        await through(bearer(NEARBY), ctx=elsewhere),
        await through(bearer(CHATTER), ctx=otherwise),
    ]

    assert [type(each.raised) for each in refused] == [AddressNotAllowed, RouteNotAllowed]
    assert elsewhere.principal is not None and elsewhere.principal.name == "nearby"
    assert otherwise.principal is not None and otherwise.principal.name == "chatter"


async def test_where_a_key_may_be_used() -> None:
    """From which address, under which path; the body is not read for it."""
    endpoint = Endpoint("embeddings")
    refused = [
        await through(bearer(NEARBY), ctx=make_context(client="192.0.2.7")),
        await through(bearer(CHATTER), ctx=make_context(endpoint=endpoint, path=b"/v1/embeddings")),
        await through(
            bearer(ALICE), ctx=make_context(endpoint=Endpoint("management", management=True))
        ),
    ]
    let_in = [
        await through(bearer(NEARBY), ctx=make_context(client="10.0.0.1")),
        await through(bearer(CHATTER)),
        await through(bearer(CHATTER), ctx=make_context(endpoint=MODELS, path=b"/v1/models")),
        await through(
            bearer(ADMIN), ctx=make_context(endpoint=Endpoint("management", management=True))
        ),
    ]

    kinds = [AddressNotAllowed, RouteNotAllowed, RouteNotAllowed]
    assert [type(seen.raised) for seen in refused] == kinds
    assert [seen.taken for seen in refused] == [0, 0, 0]
    assert [seen.body for seen in let_in] == [b"nearby", b"chatter", b"chatter", b"admin"]


@pytest.mark.parametrize(
    ("secret", "asked", "refusal"),
    [
        (BOUND, InferenceRequest(model="llama-3"), None),
        (BOUND, InferenceRequest(model="qwen"), ModelNotAllowed),
        (BOUND, InferenceRequest(), ModelNotAllowed),
        (ALICE, InferenceRequest(model="qwen"), None),
        (SHORT, InferenceRequest(model="qwen", max_tokens=100), None),
        (SHORT, InferenceRequest(model="qwen", max_tokens=101), InvalidRequest),
        (SHORT, InferenceRequest(model="qwen"), InvalidRequest),
    ],
)
async def test_what_is_asked_for_is_compared_after_the_body_was_read(
    secret: str, asked: InferenceRequest, refusal: type[Exception] | None
) -> None:
    """With the very values that are forwarded."""
    seen = await through(bearer(secret), ctx=make_context(inference=asked))

    assert seen.raised is None if refusal is None else isinstance(seen.raised, refusal)
    assert seen.status == (200 if refusal is None else None)


@pytest.mark.parametrize("query", [b"", b"a=%20b&c"])
async def test_a_signed_request_is_compared_with_its_body(query: bytes) -> None:
    """The target is signed as it was sent; what is forwarded is what was signed."""
    target = "/llm/v1/chat/completions" + (f"?{query.decode()}" if query else "")
    made = signed_headers("alice", ALICE, "POST", target, b"{}")
    headers = [(name.encode(), value.encode()) for name, value in made.items()]
    options: dict[str, Any] = {
        "query": query,
        "path": "/llm/v1/chat/completions",
        "root_path": "/llm",
    }
    good = await through(*headers, **options)
    again = signed_headers("alice", ALICE, "POST", target, b"{}")
    headers = [(name.encode(), value.encode()) for name, value in again.items()]
    bad = await through(*headers, ctx=make_context(body=b"{} "), **options)

    assert good.body == b"alice"
    assert isinstance(bad.raised, Unauthenticated)


LIST = b'{"object":"list","data":[{"id":"qwen"},{"id":"llama-2"}]}'


async def two_models(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a list, in two pieces."""
    length = (b"content-length", b"%d" % len(LIST))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": LIST[:20], "more_body": True})
    await send({"type": "http.response.body", "body": LIST[20:], "more_body": False})


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        pytest.param(ALICE, LIST, id="all"),
        pytest.param(BOUND, b'{"object":"list","data":[{"id":"llama-2"}]}', id="bound"),
    ],
)
async def test_a_list_of_models_has_what_the_key_may_use(key: str, shown: bytes) -> None:
    """And the length that it then has."""
    ctx = make_context(endpoint=MODELS, path=b"/v1/models", body=b"", inference=InferenceRequest())

    seen = await through(bearer(key), ctx=ctx, layer=two_models)

    assert seen.body == shown
    assert (b"content-length", b"%d" % len(shown)) in seen.headers


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that asks for a key before it asks for a body."""
    frame = Frame(paths=Paths([Upstream("u", "http", "h", 1)]))
    app: ASGIApp = BodyMiddleware(inside, max_body=1 << 20, max_upload=1 << 20, within=5.0)
    app = AuthMiddleware(app, authenticator=authenticator())
    app = EntranceMiddleware(
        app, paths=frame.paths, pages={}, admin_key=frame.admin_key, mark=frame.mark
    )
    app = ObserveMiddleware(
        ErrorsMiddleware(app),
        metrics=frame.metrics,
        access_log=frame.access_log,
        trusted_proxies=frame.trusted_proxies,
    )
    async with served_here(app, lifespan="off") as number:
        yield number


async def asked(port: int, secret: str, expect: bytes = b"Expect: 100-continue\r\n") -> bytes:
    """Send a head, and the body once the server wants it; return all that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, family=socket.AF_INET)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        b"content-length: 2\r\nauthorization: Bearer %b\r\n%b\r\n" % (secret.encode(), expect)
    )
    got = await reader.readuntil(b"\r\n\r\n")
    if got.startswith(b"HTTP/1.1 100"):
        writer.write(b"{}")
        got += await reader.readuntil(b"\r\n\r\n")
    with_body = await asyncio.wait_for(reader.read(64 * 1024), 5) if b" 401 " in got else b""
    writer.close()
    return got + with_body


async def test_a_bad_key_gets_no_100_continue(port: int) -> None:
    """The final answer comes first, and at once."""
    good, bad = await asked(port, ALICE), await asked(port, "sk-nobody-knows-this")

    assert good.count(b"HTTP/1.1 ") == 2 and b"HTTP/1.1 200" in good
    assert bad.startswith(b"HTTP/1.1 401") and b"HTTP/1.1 100" not in bad
    assert b'"code":"invalid_api_key"' in bad and b"www-authenticate: Bearer" in bad


async def test_refusals_are_constant_and_quick(port: int) -> None:
    """Whatever was wrong with the key, nobody can tell by the answer."""
    bodies: set[bytes] = set()
    times: list[float] = []
    for secret in ("", "a", "sk-nobody-knows-this", ALICE[:-1], ALICE + "x", "a" * 600) * 5:
        began = time.perf_counter()
        answer = await asked(port, secret, b"")
        times.append(time.perf_counter() - began)
        bodies.add(answer.partition(b"\r\n\r\n")[2])

    assert len(bodies) == 1
    assert sorted(times)[len(times) // 2] < 0.05  # a busy machine; alone it is 1 ms
    assert hashlib.sha256(ALICE.encode()).hexdigest().encode() not in bodies.pop()


async def test_a_head_that_is_repeated_is_not_read_again() -> None:
    """On one connection; and a key that is taken away is refused there as everywhere."""
    configured = ConfiguredKeys(entries(GIVEN))
    asked: list[Call] = []

    class Counting(Authenticator):
        async def identify(self, call: Call) -> Principal:
            asked.append(call)
            return await super().identify(call)

    app: ASGIApp = AuthMiddleware(inside, authenticator=Counting(keyring=Keyring(configured)))
    frame = Frame(paths=Paths([Upstream("u", "http", "h", 1)]))
    for layer in reversed(order(frame)[:3]):  # as far as the entrance
        app = layer(app)
    async with (
        served_here(app, bounds=Bounds(), lifespan="off") as number,
        raw_client(port=number) as client,
    ):
        names = []
        for secret in [*[ALICE] * 9, *[BOUND] * 9, *[ALICE] * 9]:
            client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n"
                b"authorization: Bearer %b\r\n\r\n" % secret.encode()
            )
            names.append((await client.answer()).body)
        assert names == [*[b"alice"] * 9, *[b"bound"] * 9, *[b"alice"] * 9]
        assert len(asked) <= 9  # each time until the connection knows the head

        configured.replace(entries(f"bound:{BOUND}"))
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n"
            b"authorization: Bearer %b\r\n\r\n" % ALICE.encode()
        )
        assert (await client.answer()).status == 401

"""Each request through the right door."""

from collections.abc import Mapping
from typing import Any

import pytest

from llmproxy.admin.keys import AdminKey
from llmproxy.context import RequestContext
from llmproxy.errors import LoopDetected, MethodNotAllowed, NotFound, Unauthenticated
from llmproxy.middleware.entrance import EntranceMiddleware
from llmproxy.protocol.endpoints import Paths
from llmproxy.records import Upstream
from llmproxy.types import ASGIApp, Receive, Scope, Send
from tests.support.asgi import Exchange, drive
from tests.support.builders import make_context

OLLAMA = Upstream("o", "http", "h", 1, native=frozenset({"/api/tags"}), management=("/api/delete",))


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for everything further in."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside", "more_body": False})


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page", "more_body": False})


async def enter(
    ctx: RequestContext | None = None, pages: Mapping[bytes, ASGIApp] | None = None, **options: Any
) -> Exchange:
    entrance = EntranceMiddleware(
        inside,
        paths=Paths([OLLAMA]),
        pages=pages or {},
        admin_key=AdminKey("admin-key"),
        mark=b"llmproxy-abc",
    )
    ctx = ctx or make_context(endpoint=None, path=None)
    ctx.fields = dict(options.get("headers", ()))
    return await drive(entrance, ctx=ctx, **options)


async def test_an_engines_path_goes_on_with_what_is_known_of_it() -> None:
    """Those further in need not look at the path again."""
    ctx = make_context(endpoint=None, path=None)

    seen = await enter(ctx, path="/v1/embeddings")

    assert seen.body == b"inside"
    assert ctx.path == b"/v1/embeddings"
    assert ctx.endpoint is not None and ctx.endpoint.name == "embeddings"


async def test_our_own_page_is_answered_here() -> None:
    """No layer further in is bothered, and no body is read."""
    seen = await enter(path="/health/live", pages={b"/health/live": page}, method="GET")

    assert seen.body == b"page"
    assert seen.taken == 0


@pytest.mark.parametrize(
    ("path", "answered"),
    [
        ("/admin/", True),
        ("/admin/keys", True),
        ("/admin/keys/a/b", True),
        ("/admin", False),
        ("/administer/keys", False),
        ("/x/admin/keys", False),
        ("//admin/keys", False),
        ("/v1/admin/", False),
    ],
)
async def test_a_page_can_have_all_below_it(path: str, answered: bool) -> None:
    """One whose path ends in a slash; what is next to it is not its own."""
    seen = await enter(path=path, pages={b"/admin/": page}, method="GET")

    assert (seen.body == b"page") is answered


async def test_everything_else_is_not_found() -> None:
    """Refused before a byte of the body is read."""
    seen = await enter(path="/admin")

    assert isinstance(seen.raised, NotFound)
    assert seen.taken == 0


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "BREW"])
async def test_a_foreign_method_is_refused(method: str) -> None:
    """With the list of those that are not."""
    seen = await enter(method=method)

    assert isinstance(seen.raised, MethodNotAllowed)
    assert dict(seen.raised.headers)[b"allow"].split(b", ") == [
        *(b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT"),
    ]


@pytest.mark.parametrize(
    "vias",
    [
        [b"1.1 llmproxy-abc"],
        [b"1.0 a, 1.1 llmproxy-abc (x)"],
        [b"1.1 llmproxy-abc", b"1.1 other"],
        [b"1.1 other", b"1.1 llmproxy-abc"],
    ],
    ids=["alone", "among_others", "in_the_first", "in_the_last"],
)
async def test_our_own_mark_means_a_loop(vias: list[bytes]) -> None:
    """In whichever of several Via headers it stands."""
    seen = await enter(headers=[(b"via", via) for via in vias])

    assert isinstance(seen.raised, LoopDetected)


async def test_pages_are_read_by_whoever_comes_by_us_twice() -> None:
    """A health check through a loop is no loop of requests."""
    seen = await enter(
        path="/health/live",
        pages={b"/health/live": page},
        method="GET",
        headers=[(b"via", b"1.1 llmproxy-abc")],
    )

    assert seen.body == b"page"


@pytest.mark.parametrize(
    ("header", "opens"),
    [
        ((b"authorization", b"Bearer admin-key"), True),
        ((b"authorization", b"bearer admin-key"), True),
        ((b"x-api-key", b"admin-key"), True),
        ((b"authorization", b"Bearer admin-kez"), False),
        ((b"authorization", b"Bearer "), False),
        ((b"authorization", b"Basic admin-key"), False),
        ((b"authorization", b"Bearer \xff\xfe"), False),
        ((b"cookie", b"admin-key"), False),
    ],
)
async def test_management_takes_the_admin_key(header: tuple[bytes, bytes], opens: bool) -> None:
    """As a bearer token or as an API key, compared whole."""
    seen = await enter(path="/api/delete", headers=[header])

    assert (seen.body == b"inside") is opens
    assert isinstance(seen.raised, Unauthenticated) is not opens


@pytest.mark.parametrize(
    ("root_path", "path", "raw_path"),
    [
        ("/llm", "/llm/v1/models", b"/llm/v1/models"),
        ("/llm", "/llm/v1/models", b""),
        ("/llm", "/v1/models", b"/v1/models"),
        ("/a b", "/a b/v1/models", b"/a%20b/v1/models"),
        ("", "/v1/models", b"/v1/models"),
    ],
    ids=["mounted", "without_raw_path", "prefix_already_taken_off", "escaped", "not_mounted"],
)
async def test_what_a_host_mounted_us_under_is_not_ours(
    root_path: str, path: str, raw_path: bytes
) -> None:
    """Servers and hosts spell the same mount in several ways."""
    ctx = make_context(endpoint=None, path=None)

    seen = await enter(ctx, root_path=root_path, path=path, raw_path=raw_path, method="GET")

    assert seen.body == b"inside"
    assert ctx.path == b"/v1/models"


@pytest.mark.parametrize(
    ("root_path", "raw_path"),
    [
        ("/t/a@b", b"/t/a@b/v1/models"),
        ("/t/org:1", b"/t/org:1/v1/models"),
        ("/t/é", b"/t/%c3%a9/v1/models"),
        ("/t/ab", b"/t/%61b/v1/models"),
        ("/t/a/b", b"/t/a%2Fb/v1/models"),
    ],
    ids=["unescaped", "colon", "lower_case", "needless", "slash"],
)
async def test_a_mount_is_known_however_its_caller_spells_it(
    root_path: str, raw_path: bytes
) -> None:
    """What a host matched by what the path means is not searched by how it would be written."""
    ctx = make_context(endpoint=None, path=None)
    path = f"{root_path}/v1/models"

    seen = await enter(ctx, root_path=root_path, path=path, raw_path=raw_path, method="GET")

    assert seen.body == b"inside"
    assert ctx.path == b"/v1/models"


async def test_a_mount_does_not_match_in_the_middle_of_a_name() -> None:
    """/llmx is not /llm."""
    seen = await enter(root_path="/llm", path="/llmx/v1/models", method="GET")

    assert isinstance(seen.raised, NotFound)

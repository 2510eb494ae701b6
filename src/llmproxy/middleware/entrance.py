"""Send each request through the right door.

Reads:  fields
Writes: endpoint, path
Raises: LoopDetected, MethodNotAllowed, NotFound, Unauthenticated
"""

from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes

from llmproxy.admin.keys import AdminKey
from llmproxy.context import get_context
from llmproxy.errors import LoopDetected, MethodNotAllowed, NotFound, Unauthenticated
from llmproxy.headers import find_all
from llmproxy.protocol.endpoints import Paths
from llmproxy.types import ASGIApp, Header, Receive, Scope, Send

# CONNECT and TRACE would make a tunnel or an echo of us; the rest of the world's methods
# mean nothing to an engine.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ALLOW = [(b"allow", b", ".join(sorted(method.encode() for method in METHODS)))]


class EntranceMiddleware:
    """Engine paths go on; our own pages are answered here; everything else is 404.

    A page under `/name/` has every path below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        paths: Paths,
        pages: Mapping[bytes, ASGIApp],
        admin_key: AdminKey,
        mark: bytes,
        keys_decide: bool = False,
    ) -> None:
        """`keys_decide`: further in the caller's own key tells whether it may manage engines."""
        self.app = app
        self.paths = paths
        self.pages = pages
        self.admin_key = admin_key
        self.mark = mark
        self.keys_decide = keys_decide

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        ctx = get_context(scope)
        raw = ctx.path = path_below_mount(scope)
        page = self.pages.get(raw) or self.pages.get(raw[: raw.find(b"/", 1) + 1])
        if page is not None:
            await page(scope, receive, send)
            return

        endpoint = self.paths.find(raw, scope["method"])
        if endpoint is None:
            raise NotFound("Nothing is served at this path.")
        if scope["method"] not in METHODS:
            raise MethodNotAllowed("This method is not served here.", headers=_ALLOW)
        if b"via" in ctx.fields and self._has_been_here(scope["headers"]):
            raise LoopDetected("This request has come through this proxy before.")
        if (
            endpoint.management
            and not self.keys_decide
            and not self.admin_key.opens(scope["headers"])
        ):
            raise Unauthenticated("This path needs the admin key.")
        ctx.endpoint = endpoint
        await app(scope, receive, send)

    def _has_been_here(self, headers: list[Header]) -> bool:
        return any(self.mark in via for via in find_all(headers, b"via"))


def path_below_mount(scope: Scope) -> bytes:
    """Return the raw path as this app sees it, without what a host mounted it under."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    root = scope.get("root_path", "")
    if root:
        prefix = quote(root).encode()
        if raw.startswith(prefix):
            return raw[len(prefix) :]
        return _below(raw, root, scope.get("app_root_path", ""))
    return raw


def _below(raw: bytes, root: str, of_host: str) -> bytes:
    """Return what follows the mount where it is not spelled in the path as we would spell it.

    Callers escape what they need not, and leave what they might: `/t/a@b` is `/t/a%40b`. And
    a host told its own root (`FastAPI(root_path=...)`) may stand behind a proxy that takes it
    off every path.
    """
    mounts = {root.encode(), root.removeprefix(of_host).encode()}
    at = 0
    for _ in range(root.count("/")):  # where a long path is mostly slashes, too
        at = raw.find(b"/", at + 1)
        if at < 0:
            break
        if unquote_to_bytes(raw[:at]) in mounts:
            return raw[at:]
    return raw

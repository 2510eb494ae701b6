"""Where a connection was made from and to, as each of its requests has to say."""

import asyncio
from typing import Any
from urllib.parse import unquote

from llmproxy.server.head_rules import Head
from llmproxy.types import Scope


class Place:
    """What the scopes of one connection have in common."""

    def __init__(self, root_path: str, state: dict[str, Any]) -> None:
        self._root_path = root_path
        self._state = state
        self._scheme = "http"
        self._server: tuple[str, int | None] | None = None
        self._client: tuple[str, int | None] | None = None

    def learn(self, transport: asyncio.BaseTransport) -> None:
        """Ask a new connection."""
        self._server = address(transport.get_extra_info("sockname"))
        self._client = address(transport.get_extra_info("peername"))
        if transport.get_extra_info("sslcontext") is not None:
            self._scheme = "https"

    def scope(self, head: Head, method: bytes) -> Scope:
        """Return the scope of a request."""
        path = head.path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.0" if head.old else "1.1",
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "method": method.decode("ascii"),
            "root_path": self._root_path,
            "path": unquote(path) if "%" in path else path,
            "raw_path": head.path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._state.copy(),
        }


def address(name: object) -> tuple[str, int | None] | None:
    """Return an address as ASGI has it."""
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return (name, None) if isinstance(name, str) and name else None

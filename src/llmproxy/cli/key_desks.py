"""The two places where keys are changed: the store itself, or a proxy that is asked to.

A store that others can see is changed directly, and the proxy need not run. What is in memory
only the proxy itself can change.
"""

import asyncio
import os
import pwd
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote

from llmproxy.cli.admin_client import AdminClient, Refused, Unreachable
from llmproxy.cli.configuration import BAD_CONFIGURATION

if TYPE_CHECKING:
    from llmproxy.admin.audit import Actor
    from llmproxy.admin.key_register import KeyRegister
    from llmproxy.settings import Settings
    from llmproxy.store.interface import Store

REFUSED = 1  # the exit code
READY_WITHIN = 5.0  # seconds that a store may take to answer
POLL = 0.1

T = TypeVar("T")
Work = Callable[["KeyRegister", "Actor"], Coroutine[Any, Any, T]]


class Failed(Exception):
    """It could not be done. The message is for people."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.code = code


class Desk(Protocol):
    """Where keys are looked at and changed. Every method may raise `Failed`."""

    def keys(self) -> list[dict[str, Any]]:
        """Return all keys."""

    def create(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Make a key."""

    def rotate(self, name: str, overlap: str) -> dict[str, Any]:
        """Make a new key in the place of one."""

    def revoke(self, name: str) -> dict[str, Any]:
        """Refuse a key from now on."""


class ProxyDesk:
    """A proxy that runs."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    def keys(self) -> list[dict[str, Any]]:
        """Ask for all keys."""
        found: list[dict[str, Any]] = self._ask("GET", "/admin/keys")["data"]
        return found

    def create(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Ask for a new key."""
        return self._ask("POST", "/admin/keys", given)

    def rotate(self, name: str, overlap: str) -> dict[str, Any]:
        """Ask for a key in the place of another."""
        return self._ask("POST", f"{_path(name)}/rotate", {"overlap": overlap})

    def revoke(self, name: str) -> dict[str, Any]:
        """Ask to refuse a key."""
        return self._ask("DELETE", _path(name))

    def _ask(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._client.ask(method, path, document)
        except Unreachable as exc:
            raise Failed(str(exc)) from exc
        except Refused as exc:
            if exc.status == 401:
                raise Failed("the proxy has another LLMPROXY_ADMIN_KEY") from exc
            if exc.status == 404 and path == "/admin/keys":
                raise Failed("the proxy runs without LLMPROXY_ADMIN_KEY, or elsewhere") from exc
            raise Failed(str(exc), BAD_CONFIGURATION if exc.status == 400 else REFUSED) from exc
        return answer


class StoreDesk:
    """The store that a configuration names."""

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings

    def keys(self) -> list[dict[str, Any]]:
        """Read all keys."""
        return self._run(lambda register, actor: register.documents())

    def create(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Make a key."""
        return self._run(lambda register, actor: register.create(actor, given))

    def rotate(self, name: str, overlap: str) -> dict[str, Any]:
        """Make a key in the place of another."""
        given = {"overlap": overlap}
        return self._run(lambda register, actor: register.rotate(actor, name, given))

    def revoke(self, name: str) -> dict[str, Any]:
        """Have a key refused."""
        return self._run(lambda register, actor: register.revoke(actor, name))

    def _run(self, work: "Work[T]") -> T:
        from functools import partial

        from llmproxy.admin.audit import AuditLog
        from llmproxy.admin.key_register import KeyRegister
        from llmproxy.auth.issued import IssuedKeys
        from llmproxy.errors import InvalidRequest, ProxyError
        from llmproxy.settings.engines import FIELDS
        from llmproxy.settings.issuing import why_not_asked, why_not_issued
        from llmproxy.store.opening import open_store

        # A proxy gives Redis 45 ms and then goes on without it; here somebody would rather wait.
        store = open_store(self._settings.store.url, patience=READY_WITHIN)
        register = KeyRegister(
            IssuedKeys(store),
            AuditLog(store),
            fields=FIELDS,
            configured=lambda: self._settings.keys.entries,
            objections=partial(why_not_issued, self._settings),
            notice=why_not_asked(self._settings),
        )
        try:
            return asyncio.run(self._with_store(store, work(register, _actor())))
        except InvalidRequest as exc:
            raise Failed(exc.detail, BAD_CONFIGURATION) from exc
        except ProxyError as exc:
            raise Failed(exc.detail) from exc

    async def _with_store(self, store: "Store", work: Coroutine[Any, Any, T]) -> T:
        try:
            await store.start()
            await self._answering(store)
            return await work
        finally:
            work.close()
            await store.aclose()

    async def _answering(self, store: "Store") -> None:
        """Wait until the store answers: it may be about to start."""
        from llmproxy.store.interface import Unavailable

        now = asyncio.get_running_loop().time
        deadline = now() + READY_WITHIN
        while True:
            try:
                await store.get("keys:changed")
            except Unavailable:
                if now() > deadline:
                    raise Failed(f"the store {self._settings.store} does not answer") from None
                await asyncio.sleep(POLL)
            else:
                return


def _actor() -> "Actor":
    from llmproxy.admin.audit import Actor

    # By the number that the kernel knows: LOGNAME can be set by anybody.
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return Actor(f"cli:{name}", f"cli:{number}", socket.gethostname())


def _path(name: str) -> str:
    return f"/admin/keys/{quote(name, safe='')}"

"""Servers that are registered with Consul: the instances of a service that pass their checks.

Rule 1: it is asked by a blocking query, so a change is known at once. An index that went back or
        is none begins anew, as Consul's documentation wants it.
Rule 2: the template's key is Consul's token. The servers that are found never see it.
Rule 3: nothing that it answers can make us read more than `LARGEST` or follow a redirect.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from llmproxy import codec
from llmproxy.protocol.presets import GENERIC, PRESETS
from llmproxy.records import Upstream
from llmproxy.routing.discovery.source import LookFailed, Place, servers_at
from llmproxy.transport.tls import tls_for

HTTPS_PORT = 8501  # Consul's own convention; on every other port it is asked by HTTP
HOLD = 60  # seconds that Consul may hold a question back while nothing changes
WITHIN = 10.0  # seconds for what it does not hold back
BREATH = 1.0  # seconds between two answers: a service that flaps must not keep us busy
EVERY = 10.0  # seconds, where it holds nothing back
LARGEST = 4 * 1024 * 1024  # bytes

_HOST = re.compile(r"[A-Za-z0-9_.:-]{1,253}")


class ConsulSource:
    """Asks one agent for one service."""

    def __init__(self, template: Upstream) -> None:
        self._template = template
        self._index = 0
        self._client: httpx.AsyncClient | None = None

    @property
    def pause(self) -> float:
        return BREATH if self._index else EVERY

    async def look(self) -> Sequence[Upstream]:
        before, self._index = self._index, 0  # what fails is asked anew, and not held back
        try:
            answer, content = await self._ask(before)
        except TimeoutError:
            raise LookFailed("Consul did not answer in time") from None
        except (httpx.HTTPError, OSError) as exc:
            raise LookFailed(f"Consul cannot be asked ({type(exc).__name__})") from exc
        if answer.status_code in (401, 403):
            raise LookFailed(f"Consul refuses our token (status {answer.status_code})")
        if answer.status_code != 200:
            raise LookFailed(f"Consul answers with status {answer.status_code}")
        places = _places(content, PRESETS.get(self._template.preset, GENERIC).port)
        index = answer.headers.get("x-consul-index", "")
        if index.isascii() and index.isdigit() and int(index) >= before:
            self._index = int(index)
        return servers_at(replace(self._template, credentials=()), places)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, index: int) -> tuple[httpx.Response, bytes]:
        if self._client is None:
            self._client = await self._connected()
        params = {"passing": "1", **({"index": str(index), "wait": f"{HOLD}s"} if index else {})}
        # It adds a sixteenth to what it was asked to wait.
        within = WITHIN + (HOLD * 17 / 16 if index else 0.0)
        path = f"/v1/health/service/{self._template.path}"
        async with (
            asyncio.timeout(within),
            self._client.stream("GET", path, params=params) as answer,
        ):
            content = b""
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > LARGEST:
                    raise LookFailed(f"Consul's answer is larger than {LARGEST} bytes")
            return answer, content

    async def _connected(self) -> httpx.AsyncClient:
        template = self._template
        scheme = "https" if template.port == HTTPS_PORT else "http"
        # In a thread: reading certificates takes some 20 ms.
        tls = await asyncio.to_thread(tls_for, replace(template, scheme=scheme))
        host = f"[{template.host}]" if ":" in template.host else template.host
        return httpx.AsyncClient(
            base_url=f"{scheme}://{host}:{template.port}",
            headers=list(template.credentials),
            verify=tls if tls is not None else False,  # by HTTP there is nothing to verify
            timeout=httpx.Timeout(WITHIN, read=None),
            trust_env=False,
            follow_redirects=False,
        )


def _places(content: bytes, usual_port: int) -> list[Place]:
    try:
        told = codec.loads(content)
    except codec.NotJson:
        told = None
    if not isinstance(told, list):
        raise LookFailed("what Consul sent is no list of instances")
    return [_place(instance, usual_port) for instance in told]


def _place(instance: Any, usual_port: int) -> Place:
    service = _table(_table(instance).get("Service"))
    host = service.get("Address") or _table(_table(instance).get("Node")).get("Address")
    port = service.get("Port") or usual_port
    weight = _table(service.get("Weights", {})).get("Passing", 1)
    if not isinstance(host, str) or not _HOST.fullmatch(host):
        raise LookFailed("an instance has no address")
    if not isinstance(port, int) or not 0 < port < 65536 or not isinstance(weight, int):
        raise LookFailed("an instance has no port or weight that could be one")
    return Place(host.lower(), port, max(1, weight))


def _table(told: object) -> Mapping[str, Any]:
    if not isinstance(told, Mapping):
        raise LookFailed("what Consul sent is no list of instances")
    return told

"""Ask one upstream how it is and which models it has."""

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from importlib.metadata import version

from llmproxy import clock, codec
from llmproxy.errors import ProxyError, UpstreamBroken, UpstreamTimeout
from llmproxy.records import Upstream
from llmproxy.transport.interface import Call, Outgoing, Silence, Transport
from llmproxy.types import Header

LARGEST_LIST = 8 * 1024 * 1024  # bytes; a marketplace of a thousand models has about one MiB
_AGENT = b"llmproxy/" + version("llmproxy").encode()


@dataclass(frozen=True, slots=True)
class Probe:
    """How an upstream is."""

    ok: bool
    detail: str  # "ok", or what is wrong
    models: tuple[str, ...] | None  # None when it does not say
    seconds: float


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300


async def probe(transport: Transport, upstream: Upstream, *, within: float) -> Probe:
    """Ask an upstream for its health and its models, `within` seconds for all of it."""
    began = clock.now()
    try:
        async with asyncio.timeout(within):
            detail, models = await _ask(transport, upstream, within)
    except TimeoutError:
        detail, models = f"no answer within {within:g} s", None
    except ProxyError as exc:
        detail, models = _cause(exc, within), None
    return Probe(detail == "ok", detail, models, clock.now() - began)


async def _ask(
    transport: Transport, upstream: Upstream, within: float
) -> tuple[str, tuple[str, ...] | None]:
    if upstream.health:
        health = await _get(transport, upstream, upstream.root + upstream.health, within)
        # Behind a plain URL may stand a server that has no such path, but models.
        generic = upstream.preset == "http" and health.status in (404, 405, 501)
        if not health.good and not generic:
            return _verdict(health.status), None
    else:
        health = None
    try:
        async with asyncio.timeout(within / 2 if health is not None else within):
            listed = await _get(transport, upstream, f"{upstream.api}/models", within)
    except (TimeoutError, UpstreamTimeout):
        if health is None:
            raise
        return "ok", None  # it answers; llama-cpp-python lists no models while it generates
    models = model_names(listed.body) if listed.good else None
    if listed.status in (401, 403):
        return _verdict(listed.status), None
    if health is not None and health.good:
        return "ok", models
    if not upstream.lists_models and listed.status < 500:
        return "ok", models  # it answers, which is all that it can be asked for
    if listed.good and models is None:
        return "its list of models is not one", None
    return ("ok" if listed.good else _verdict(listed.status)), models


async def _get(transport: Transport, upstream: Upstream, path: str, within: float) -> _Answer:
    headers: list[Header] = [
        (b"host", upstream.authority.encode()),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", _AGENT),
        *upstream.credentials,
    ]
    outgoing = Outgoing(b"GET", path.encode(), headers)
    call = await transport.open(outgoing, connect=within, answer=within)
    try:
        return _Answer(call.status, await _body(call, within))
    finally:
        call.close()


async def _body(call: Call, within: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = await call.read(within)
        except Silence:
            raise UpstreamTimeout("The answer stopped half way.") from None
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > LARGEST_LIST:
            raise UpstreamBroken("The answer is too long for a list of models.")


def model_names(body: bytes) -> tuple[str, ...] | None:
    """Return the models in a list, OpenAI's or a native one; None when it is no list."""
    try:
        document = codec.loads(body)
    except codec.NotJson:
        return None
    if not isinstance(document, dict):
        return None
    items = document.get("data", document.get("models"))
    if not isinstance(items, list):
        return None
    names = [
        item.get("id") or item.get("name") if isinstance(item, dict) else None for item in items
    ]
    return tuple(name for name in names if isinstance(name, str))


def _verdict(status: int) -> str:
    if status in (401, 403):
        return f"refuses our key (status {status})"
    return f"answers with status {status}"


def _cause(error: ProxyError, within: float) -> str:
    """Return what went wrong, in words that hold no address and no secret."""
    if isinstance(error, UpstreamTimeout):
        return f"no answer within {within:g} s"
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return "does not speak TLS with us"
    if isinstance(cause, socket.gaierror):
        return "its name is not known"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()  # asyncio's own text holds the address
    return error.detail.rstrip(".")

"""Ask one upstream how it is and which models it has. Never for a completion."""

import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from llmproxy import clock
from llmproxy.errors import ProxyError
from llmproxy.records import Upstream
from llmproxy.routing.model_list import Document, documents_in
from llmproxy.routing.page import Page, fetch
from llmproxy.routing.patience import patient
from llmproxy.transport.interface import Transport

LARGEST_LIST = 8 * 1024 * 1024  # bytes; a marketplace of a thousand models has about one MiB


@dataclass(frozen=True, slots=True)
class Probe:
    """How an upstream is."""

    ok: bool
    detail: str  # "ok", or what is wrong
    documents: Mapping[str, Document] | None  # its models by id; None when it does not say
    seconds: float
    silent: bool = False  # it has said nothing at all, which a busy one may do too

    @property
    def models(self) -> tuple[str, ...] | None:
        return tuple(self.documents) if self.documents is not None else None


Said = tuple[str, Mapping[str, Document] | None]


async def probe(
    transport: Transport, upstream: Upstream, *, within: float, listing: bool = True
) -> Probe:
    """Ask an upstream for its health and its models, `within` seconds for all of it.

    Without `listing` its models are asked for only where nothing else tells how it is.
    """
    began = clock.now()
    silent = False
    try:
        async with patient(within):
            detail, documents = await _ask(transport, upstream, within, listing)
    except TimeoutError:
        detail, documents, silent = f"no answer within {within:g} s", None, True
    except ProxyError as exc:
        detail, documents = _cause(exc), None
    return Probe(detail == "ok", detail, documents, clock.now() - began, silent)


async def _ask(transport: Transport, upstream: Upstream, within: float, listing: bool) -> Said:
    if upstream.health:
        health = await _get(transport, upstream, upstream.root + upstream.health)
        # Behind a plain URL may stand a server that has no such path, but models.
        generic = upstream.preset == "http" and health.status in (404, 405, 501)
        if not health.good and not generic:
            return _verdict(health.status), None
        if health.good and not listing:
            return "ok", None
    else:
        health = None
    try:
        async with patient(within / 2 if health is not None else within):
            listed = await _get(transport, upstream, f"{upstream.api}/models")
    except TimeoutError:
        if health is None:
            raise
        return "ok", None  # it answers; llama-cpp-python lists no models while it generates
    documents = documents_in(listed.body) if listed.good else None
    if listed.status in (401, 403):
        return _verdict(listed.status), None
    if health is not None and health.good:
        return "ok", documents
    if not upstream.lists_models and listed.status < 500:
        return "ok", documents  # it answers, which is all that it can be asked for
    if listed.good and documents is None:
        return "its list of models is not one", None
    return ("ok" if listed.good else _verdict(listed.status)), documents


async def _get(transport: Transport, upstream: Upstream, path: str) -> Page:
    # No clock but the one around all of it.
    return await fetch(transport, upstream, path, within=0, at_most=LARGEST_LIST)


def _verdict(status: int) -> str:
    if status in (401, 403):
        return f"refuses our key (status {status})"
    return f"answers with status {status}"


def _cause(error: ProxyError) -> str:
    """Return what went wrong, in words that hold no address and no secret."""
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

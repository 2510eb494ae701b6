"""Model servers on this machine, on the ports that they are known to use.

Rule 1: a server counts when its list of models is one, with a model in it. Whatever else has
        taken such a port is left alone after one question.
Rule 2: nothing is asked but GETs, of the loopback interface, all ports at the same time.
Rule 3: an llmproxy never counts: it would stand behind itself, or behind another one by mistake.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from llmproxy import codec
from llmproxy.errors import ProxyError
from llmproxy.protocol.presets import LOCAL, PRESETS
from llmproxy.records import Upstream
from llmproxy.routing.page import Page, fetch
from llmproxy.transport.connect import transport_for

WITHIN = 0.8  # seconds for all questions to one port
LARGEST = 1024 * 1024  # bytes of an answer

ENGINES = ("ollama", "vllm", "sglang", "lmstudio", "llamacpp", "localai", "tgi", "textgen")
PLACES = tuple(dict.fromkeys((PRESETS[name].port, name) for name in ENGINES))
"""Ports, and which engines are known to be there."""

# These say in each model who they are, on whatever port.
_OWNERS = frozenset({"vllm", "sglang", "llamacpp"})


class LocalServer(NamedTuple):
    """A model server that was found."""

    engine: str  # the name of a preset, or http when it does not say what it is
    port: int
    models: int


def _says(field: str) -> Callable[[Page], bool]:
    return lambda page: isinstance(_table(page).get(field), str)


# Where the others answer what nobody else does.
_SIGNS: Mapping[str, tuple[str, Callable[[Page], bool]]] = MappingProxyType(
    {
        "ollama": ("/api/version", _says("version")),
        "lmstudio": ("/api/v0/models", lambda page: bool(_models(page))),
        "localai": ("/readyz", lambda page: page.good),
        "tgi": ("/info", _says("model_id")),
        "textgen": ("/v1/internal/model/info", _says("model_name")),
    }
)


async def local_servers(
    *, besides: int, places: Sequence[tuple[int, str]] | None = None
) -> list[LocalServer]:
    """Return the servers that answer, in the order of the places. `besides` is our own port."""
    engines: dict[int, list[str]] = {}
    for port, engine in PLACES if places is None else places:
        if port != besides:
            engines.setdefault(port, []).append(engine)
    found = await asyncio.gather(*(_server_at(port, those) for port, those in engines.items()))
    return [server for server in found if server is not None]


async def _server_at(port: int, engines: Sequence[str]) -> LocalServer | None:
    upstream = Upstream(name="local", scheme="http", host=LOCAL, port=port)
    transport = transport_for(upstream)

    async def ask(path: str) -> Page:
        return await fetch(transport, upstream, path, within=WITHIN, at_most=LARGEST)

    try:
        async with asyncio.timeout(WITHIN):
            models = _models(await ask("/v1/models"))
            if not models or _is_ours(await ask("/health/live")):
                return None
            return LocalServer(await _engine(models, engines, ask), port, len(models))
    except (ProxyError, TimeoutError):
        return None
    finally:
        await transport.aclose()


async def _engine(
    models: Sequence[Mapping[str, Any]],
    engines: Sequence[str],
    ask: Callable[[str], Awaitable[Page]],
) -> str:
    owner = models[0].get("owned_by")
    if owner in _OWNERS:
        return str(owner)
    for engine in engines:
        path, shows = _SIGNS.get(engine, ("", None))
        if shows is not None and shows(await ask(path)):
            return engine
    return "http"


def _is_ours(page: Page) -> bool:
    return _table(page) == {"status": "ok"}


def _models(page: Page) -> list[Mapping[str, Any]]:
    """Return the models of a page that is a list of them, else none."""
    told = _table(page)
    models = told.get("data")
    if told.get("object") != "list" or not isinstance(models, list):
        return []
    if not all(isinstance(each, dict) and isinstance(each.get("id"), str) for each in models):
        return []
    return models


def _table(page: Page) -> Mapping[str, Any]:
    """Return what a good page says, if that is a JSON object."""
    if not page.good:
        return {}
    try:
        told = codec.loads(page.body)
    except codec.NotJson:
        return {}
    return told if isinstance(told, dict) else {}

"""Lists of models: what a server says it has, and what we say that all of them have.

Pure. A model is told with everything that its engine says of it (vLLM's `max_model_len`, the
prices of a marketplace), within bounds: there may be a thousand servers behind us.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from llmproxy import codec
from llmproxy.routing.server import Server

MOST_MODELS = 2000  # of one server
LONGEST_NAME = 256  # characters
LARGEST_DOCUMENT = 8 * 1024  # bytes; of a larger one only what OpenAI's own has is kept
OWN = "llmproxy"  # who owns what is only a name here

Document = Mapping[str, Any]

_USUAL = ("id", "object", "created", "owned_by")


def documents_in(body: bytes) -> dict[str, Document] | None:
    """Return the models in a list, OpenAI's or a native one, by id; None when it is no list."""
    try:
        given = codec.loads(body)
    except codec.NotJson:
        return None
    if not isinstance(given, dict):
        return None
    items = given.get("data", given.get("models"))
    if not isinstance(items, list):
        return None
    found: dict[str, Document] = {}
    for item in items[:MOST_MODELS]:
        if not isinstance(item, dict):
            continue
        name = item.get("id") or item.get("name")
        if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name not in found:
            found[name] = _bounded(item)
    return found


def merged(
    servers: Sequence[Server], aliases: Iterable[str] = (), *, only_healthy: bool = True
) -> list[Document]:
    """Return the models of all servers that get requests, each once, and the aliases.

    In the order in which they are first met. A name that is an alias is told as one: it is what
    a request for it gets.
    """
    found: dict[str, Document] = {}
    for server in servers:
        if server.draining or (only_healthy and not server.up):
            continue
        for name, document in _of(server).items():
            found.setdefault(name, document)
    for alias in aliases:
        found[alias] = _usual(alias, OWN)
    return list(found.values())


def _of(server: Server) -> dict[str, Document]:
    """Return what a server has: only that which it is configured to have, if that was said."""
    listed = server.documents or {}
    declared = server.upstream.models
    usual = {name: _usual(name, server.upstream.preset) for name in declared or listed}
    return {name: {**usual[name], **listed.get(name, {}), "id": name} for name in usual}


def _usual(name: str, owner: str) -> Document:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _bounded(item: dict[str, Any]) -> Document:
    with suppress(TypeError):  # nested deeper than it can be written
        if len(codec.dumps(item)) <= LARGEST_DOCUMENT:
            return item
    return {
        name: item[name]
        for name in _USUAL
        if isinstance(item.get(name), str | int) and len(str(item[name])) <= LONGEST_NAME
    }

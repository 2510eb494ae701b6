"""Where servers are looked for, and what becomes of what is found.

A template is an `Upstream` with `found_by` set: it says where to look, and what each server that
is found there is like. A server is called `<template>-<mark>`; the mark depends on its address
and nothing else, so that it has the same name in every worker and after a restart, and the name
tells no caller where it is.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from llmproxy.records import Upstream

Read = Callable[[Upstream, bytes], Sequence[Upstream]]
"""Understands the content of a template's file; raises `ValueError`."""

HEAVIEST = 1_000_000  # what a weight may be in the configuration


class LookFailed(Exception):
    """What there is cannot be known now. Its text is for the log and names no host."""


class Place(NamedTuple):
    """Where a server was found."""

    host: str
    port: int
    weight: int = 1  # its share among those of the same source


class Source(Protocol):
    """Something that can be asked what there is."""

    @property
    def pause(self) -> float:
        """Seconds until it is worth asking again."""

    async def look(self) -> Sequence[Upstream]:
        """Return all servers that there are now, none included; raise `LookFailed`."""

    async def aclose(self) -> None:
        """Let go of connections."""


def servers_at(template: Upstream, places: Iterable[Place]) -> list[Upstream]:
    """Return the servers that stand in some places, one in each, always in the same order."""
    each_once = {(place.host, place.port): place for place in sorted(places)}
    return [
        replace(
            template,
            name=f"{template.name}-{mark(f'{place.host} {place.port}')}",
            found_by="",
            found=True,
            host=place.host,
            port=place.port,
            path="",
            weight=min(HEAVIEST, template.weight * place.weight),
        )
        for place in each_once.values()
    ]


def mark(text: str) -> str:
    """Return a short name for a text."""
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

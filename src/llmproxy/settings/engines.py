"""The grammars of the engines, as settings read them.

An engine knows what its own values look like and says so in a `ValueError`; here that becomes
a refusal with a value that may be shown.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from llmproxy.auth.claims import claims
from llmproxy.auth.fields import Fields
from llmproxy.auth.key_file import load_keys
from llmproxy.auth.keys import KeyEntry, keys
from llmproxy.metering.prices import Price, prices
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limits import limits
from llmproxy.settings.faults import MASK, Refused, safe_url, shown
from llmproxy.settings.lists import native
from llmproxy.settings.upstreams import Given
from llmproxy.store.urls import store_url

T = TypeVar("T")

FIELDS = Fields(limits=limits, budgets=budgets)
_FILE = "file:"


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the configured keys are: named one by one, or in a file that is watched."""

    entries: tuple[KeyEntry, ...] = ()
    file: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    said: bool = field(default=False, compare=False)  # by somebody, if only that there are none

    def __bool__(self) -> bool:
        return bool(self.entries) or self.file is not None

    def __str__(self) -> str:
        if self.file is not None:
            return _FILE + self.file
        return ",".join(f"{entry.principal.name}:{MASK}" for entry in self.entries)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """The URL of a store, which may have a password in it."""

    url: str = field(default="memory", repr=False)

    @property
    def shared(self) -> bool:
        """Whether several processes can use it."""
        return self.url != "memory"

    def __str__(self) -> str:
        return safe_url(self.url)


def read_keys(given: object) -> KeySource:
    """Read the list of keys, or the file of them."""
    if isinstance(given, KeySource):
        return given
    environ: Mapping[str, str] = os.environ
    if isinstance(given, Given):
        environ = given.environ
        given = given.value
    try:
        if isinstance(given, str) and given.strip().startswith(_FILE):
            path = given.strip().removeprefix(_FILE)
            return KeySource(
                load_keys(path, fields=FIELDS, environ=environ), path, environ, said=True
            )
        return KeySource(keys(given, fields=FIELDS, environ=environ), None, environ, said=True)
    except ValueError as exc:
        raise Refused((MASK, str(exc))) from None


def read_store(given: object) -> StoreUrl:
    """Read the URL of a store."""
    if isinstance(given, StoreUrl):
        return given
    try:
        return StoreUrl(store_url(given))
    except ValueError as exc:
        value = safe_url(given) if isinstance(given, str) else given
        raise Refused((shown(value), str(exc))) from None


def read_prices(given: object) -> tuple[Price, ...]:
    """Read the price list."""
    if isinstance(given, tuple) and all(isinstance(item, Price) for item in given):
        return given
    return told(lambda value: prices(value).prices, given)


def read_claims(given: object) -> tuple[str, ...]:
    """Read what the claims of a token mean: `field=claim`."""
    found = told(lambda value: claims(value, fields=FIELDS), given)
    return tuple(f"{field}={claim}" for field, claim in found.mapping.items())


def reader(grammar: Callable[[object], tuple[T, ...]], kind: type[T]) -> Callable[[object], object]:
    """Return the reader of a list; what was made in Python is taken as it is."""

    def read(given: object) -> object:
        if isinstance(given, tuple | list) and all(isinstance(item, kind) for item in given):
            return tuple(given)
        return told(grammar, given)

    return read


def told(grammar: Callable[[object], T], given: object) -> T:
    """Return what a grammar reads; refuse what it refuses. JSON in a text is read first."""
    try:
        return grammar(native(given))
    except ValueError as exc:
        raise Refused((shown(given), str(exc))) from None

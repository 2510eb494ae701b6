"""The grammar of the chain: built-in names, or `package.module:Class`.

Only configuration may name a class. What comes in a request is never looked up.
"""

import asyncio
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from llmproxy.settings.faults import Refused, cut, refuse
from llmproxy.settings.lists import strings
from llmproxy.settings.variables import NOT_IN_THIS_VERSION

BUILT_IN = ("auth", "rate_limit", "routing")
LATER = ("metering", "semantic_cache")
DEFAULT = BUILT_IN

_ANYTHING = (Exception, SystemExit)  # may come out of code that is not ours
_DIGIT = re.compile(r"\d")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def middleware(given: object) -> tuple[str, ...]:
    """Read the chain, outermost first, and see that every class in it is there."""
    found = strings(given)
    for name in found:
        if name in BUILT_IN:
            continue
        if name in LATER:
            raise Refused((cut(name), f"{NOT_IN_THIS_VERSION}; leave it out"))
        if not _PATH.fullmatch(name):
            raise refuse(name, f"must be package.module:Class or one of {', '.join(BUILT_IN)}")
        layer = _class_at(name)
        if not callable(layer) or not _takes(layer, 1):
            raise _refuse_path(name, "must be a class that takes the app, and needs nothing else")
    if len(set(found)) != len(found):
        raise refuse(given, "names a layer twice")
    ours = [name for name in found if name in BUILT_IN]
    if "routing" in ours[:-1]:
        # What stands behind it would run once for each attempt: a request tried twice would be
        # counted twice.
        raise Refused((cut(",".join(found)), f"must have routing behind {ours[-1]}"))
    return found


def why_not_made(given: object) -> Refused | None:
    """Make the layers of a chain, to see that it can be done; return what is wrong with them.

    Not for a process that then makes them in earnest: of some there can be one only.
    """
    try:
        named = [name for name in middleware(given) if name not in BUILT_IN]
    except Refused:
        return None  # which was told
    wrong: list[tuple[str, str]] = []
    for name in named:
        try:
            asyncio.run(_make(name))
        except Refused as exc:
            wrong += exc.complaints
    return Refused(*wrong) if wrong else None


async def _make(name: str) -> None:
    # In a loop, as in earnest: it may want to know which one.
    found = _class_at(name)
    try:
        layer = found(_nobody)
    except _ANYTHING as exc:
        raise _refuse_path(name, f"cannot be made: it raises {type(exc).__name__}") from None
    if not callable(layer) or not _takes(layer, 3):
        raise _refuse_path(name, "makes no ASGI app: it takes no (scope, receive, send)")


async def _nobody(*_: object) -> None:
    """Stand where the rest of the chain will be."""


def _class_at(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except _ANYTHING as exc:
        raise _refuse_path(name, f"cannot be imported: {type(exc).__name__}") from exc


def _takes(what: Callable[..., object], arguments: int) -> bool:
    """Tell whether something can be called with so many arguments, as far as it says."""
    try:
        inspect.signature(what).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # it says nothing
        return True
    return True


def _refuse_path(name: str, cure: str) -> Refused:
    # A pair of words is the path of a class; with a digit it may be somebody's key.
    return refuse(name, cure) if _DIGIT.search(name) else Refused((cut(name), cure))

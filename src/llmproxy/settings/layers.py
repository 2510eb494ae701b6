"""The grammar of the chain: built-in names, or `package.module:Class`.

Only configuration may name a class. What comes in a request is never looked up.
"""

import importlib
import re

from llmproxy.settings.faults import Refused, cut, refuse
from llmproxy.settings.lists import strings
from llmproxy.settings.variables import NOT_IN_THIS_VERSION

BUILT_IN = ("auth", "rate_limit", "routing")
LATER = ("metering", "semantic_cache")
DEFAULT = BUILT_IN

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
        module, _, attribute = name.partition(":")
        try:
            layer = getattr(importlib.import_module(module), attribute)
        except Exception as exc:  # a module may raise what it likes while it is imported
            raise refuse(name, f"cannot be imported: {type(exc).__name__}") from exc
        if not callable(layer):
            raise refuse(name, "must be a class that takes the app as its first argument")
    if len(set(found)) != len(found):
        raise refuse(given, "names a layer twice")
    ours = [name for name in found if name in BUILT_IN]
    if "routing" in ours[:-1]:
        # What stands behind it would run once for each attempt: a request tried twice would be
        # counted twice.
        raise Refused((cut(",".join(found)), f"must have routing behind {ours[-1]}"))
    return found

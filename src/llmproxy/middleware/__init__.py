"""The layers: ASGI in, ASGI out, one concern each.

The capitalised names are for other people's apps: `llmproxy.middleware.RateLimit` brings the
frame along that the layer needs. They are made far above, so they are looked up when asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmproxy.single import Auth, RateLimit, Routing

__all__ = ["Auth", "RateLimit", "Routing"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("llmproxy.single"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

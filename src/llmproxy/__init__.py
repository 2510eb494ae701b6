"""A thin, high-throughput streaming reverse proxy for LLM servers.

    app.mount("/llm", llmproxy.create_app())

Everything behind these names is loaded when it is first used: importing the package reads no
environment, opens nothing and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmproxy.deferred import DeferredApp

if TYPE_CHECKING:
    from llmproxy import middleware
    from llmproxy.application import LLMProxy, create_app, lifespan
    from llmproxy.settings import Settings, SettingsError

__all__ = [
    "LLMProxy",
    "Settings",
    "SettingsError",
    "app",
    "create_app",
    "lifespan",
    "middleware",
]

__version__ = "0.1.0"

# No module of this package may be called `app`: importing it would bind it to this very name.
app = DeferredApp()

_HOMES = {
    "LLMProxy": "llmproxy.application",
    "create_app": "llmproxy.application",
    "lifespan": "llmproxy.application",
    "Settings": "llmproxy.settings",
    "SettingsError": "llmproxy.settings",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "middleware":
        value = import_module("llmproxy.middleware")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value

"""Imports the package and prints what that has changed: nothing, one hopes."""

import asyncio
import logging
import os
import signal
import sys
import threading
import warnings

SIGNALS = [number for number in signal.valid_signals() if number not in (9, 19)]


def state() -> dict[str, object]:
    """Return what a library has no business changing."""
    return {
        "policy": asyncio.get_event_loop_policy().__class__,
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "our_handlers": [
            handler
            for name in list(logging.root.manager.loggerDict)
            if name.split(".")[0] in ("llmproxy", "uvicorn")
            for handler in logging.getLogger(name).handlers
        ],
        "threads": threading.active_count(),
        "filters": list(warnings.filters),
        "descriptors": len(os.listdir("/dev/fd")),
        "directory": os.getcwd(),
        "hook": sys.excepthook,
    }


read: list[str] = []


def note(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.__new__", "socket.connect", "subprocess.Popen", "os.putenv"):
        read.append(event)


class Environment(dict[str, str]):
    """An environment that remembers what was asked of it."""

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        if key.startswith("LLMPROXY"):
            read.append(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> str:
        if key.startswith("LLMPROXY"):
            read.append(key)
        return super().__getitem__(key)


before = state()
sys.addaudithook(note)
environ, os.environ = os.environ, Environment(os.environ)  # type: ignore[assignment]
os.environ["LLMPROXY_NONSENSE"] = "whoever looks at everything refuses this"
import llmproxy  # noqa: E402

llmproxy.create_app, llmproxy.Settings, llmproxy.lifespan, llmproxy.middleware  # noqa: B018
os.environ = environ  # noqa: B003
after = state()

changed = sorted(name for name in before if before[name] != after[name])
print("changed:", changed, "read:", read)  # noqa: T201

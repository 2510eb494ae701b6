"""Runs the demo in a process of its own."""

import os
import socket
import sys
import threading
from contextlib import suppress

import uvicorn

from llmproxy.demo_upstream import READY
from llmproxy.demo_upstream.app import app


def run(host: str, port: int, *, with_parent: bool = False) -> int:
    """Serve until a signal, or until the parent is gone; say on stdout where."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        print(f"cannot listen on {host}:{port}: {exc.strerror}", file=sys.stderr)
        return 1
    listener.listen(128)
    if with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    print(f"{READY}http://{shown}:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False
    )
    with suppress(KeyboardInterrupt):  # raised again by uvicorn after it has stopped
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _end_with_parent() -> None:
    """End this process when the other end of stdin is closed.

    The parent holds it for as long as it lives; however it dies, the kernel closes it.
    """
    while os.read(0, 4096):
        pass
    os._exit(0)

"""`llmproxy serve`: run the proxy."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from llmproxy.cli.configuration import BAD_CONFIGURATION, NONE_FOUND, loaded

if TYPE_CHECKING:
    from llmproxy.settings import Loaded, Settings


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser("serve", help="run the proxy (the default command)")
    parser.add_argument(
        "--demo", action="store_true", help="start a demo upstream when none is configured"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    configured = loaded(makes_layers=True)  # the workers do so in earnest, in their own processes
    if configured is None:
        return BAD_CONFIGURATION
    if configured.settings.upstreams:
        if arguments.demo:
            print("llmproxy: upstreams are configured, so no demo is started", file=sys.stderr)
        return _until_signal(configured)
    if not arguments.demo:
        return _with_local_servers(configured.settings.port)

    from llmproxy.cli.demo_process import DemoFailed, demo_process

    try:
        with demo_process() as url:
            return _with_upstreams(f"demo={url}")
    except DemoFailed as exc:
        print(f"llmproxy: {exc}", file=sys.stderr)
        return 1


def _with_local_servers(port: int) -> int:
    from llmproxy.cli.local_servers import upstreams_here

    found = upstreams_here(port)
    if not found:
        print(NONE_FOUND, file=sys.stderr)
        return BAD_CONFIGURATION
    return _with_upstreams(found)


def _with_upstreams(upstreams: str) -> int:
    # Where the workers will find it, too.
    os.environ["LLMPROXY_UPSTREAMS"] = upstreams
    configured = loaded()
    return BAD_CONFIGURATION if configured is None else _until_signal(configured)


def _until_signal(configured: "Loaded[Settings]") -> int:
    from llmproxy.cli.open_door import OPEN, PERHAPS_OPEN, stands_open

    warnings = configured.warnings
    opened = stands_open(configured.settings)
    if opened:
        print(f"llmproxy: {OPEN}", file=sys.stderr)
        return BAD_CONFIGURATION
    if opened is None:
        warnings = (*warnings, PERHAPS_OPEN)

    from llmproxy.server.run import run

    return run(configured.settings, warnings=warnings)

"""`llmproxy serve`: run the proxy."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from llmproxy.cli.configuration import BAD_CONFIGURATION, NO_UPSTREAM, loaded

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
    configured = loaded()
    if configured is None:
        return BAD_CONFIGURATION
    if configured.settings.upstreams:
        if arguments.demo:
            print("llmproxy: upstreams are configured, so no demo is started", file=sys.stderr)
        return _until_signal(configured)
    if not arguments.demo:
        print(NO_UPSTREAM, file=sys.stderr)
        return BAD_CONFIGURATION

    from llmproxy.cli.demo_process import DemoFailed, demo_process

    try:
        with demo_process() as url:
            # Where the workers will find it, too.
            os.environ["LLMPROXY_UPSTREAMS"] = f"demo={url}"
            configured = loaded()
            if configured is None:
                return BAD_CONFIGURATION
            return _until_signal(configured)
    except DemoFailed as exc:
        print(f"llmproxy: {exc}", file=sys.stderr)
        return 1


def _until_signal(configured: "Loaded[Settings]") -> int:
    from llmproxy.server.run import run

    return run(configured.settings, warnings=configured.warnings)

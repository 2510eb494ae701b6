"""The `llmproxy` command. One file per subcommand.

Rule: a module here imports what is heavy inside its functions. A fault in the configuration
is told at once, not after a server has been loaded that will never start.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from llmproxy.cli import check, config, demo_upstream, keys, serve

DEFAULT = "serve"
LATER = ("usage", "top", "cache")  # named by the public contract, not built yet
NOBODY_READS = 1
_FOR_ALL = ("-h", "--help", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in _FOR_ALL):
        words.insert(0, DEFAULT)
    if words[0] in LATER:
        print(f"llmproxy {words[0]}: not in this version", file=sys.stderr)
        return 2
    arguments = parser().parse_args(words)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough, `head` say. What is left would be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    return code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="llmproxy",
        description="A thin streaming reverse proxy for LLM servers.",
        epilog="Everything else is configured by LLMPROXY_* variables; see `llmproxy config`.",
    )
    top.add_argument("--version", action="version", version=f"llmproxy {version('llmproxy')}")
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    for module in (serve, check, config, keys, demo_upstream):
        module.add_to(commands)
    return top

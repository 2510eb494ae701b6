"""`llmproxy demo-upstream`: a small OpenAI-compatible server to try things against."""

import argparse


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser("demo-upstream", help="run a small server to try things against")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument(
        "--port", type=_port, default=8000, help="port; 0 takes a free one (%(default)s)"
    )
    parser.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    from llmproxy.demo_upstream.server import run

    return run(arguments.host, arguments.port, with_parent=arguments.with_parent)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535")
    return int(text)

"""`llmproxy config`: the effective configuration, and where each value came from."""

import argparse
import sys

from llmproxy.cli.configuration import BAD_CONFIGURATION, loaded
from llmproxy.cli.table import table


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser("config", help="show the effective configuration")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every variable with its value and its source."""
    configured = loaded()
    if configured is None:
        return BAD_CONFIGURATION
    for warning in configured.warnings:
        print(f"llmproxy: {warning}", file=sys.stderr)
    if arguments.json:
        from llmproxy import codec

        rows = [
            {"variable": origin.variable, "value": origin.value, "source": origin.source}
            for origin in configured.origins
        ]
        print(codec.dumps_pretty(rows).decode())
        return 0
    rows_of_text = [(origin.variable, origin.value, origin.source) for origin in configured.origins]
    print(table(("variable", "value", "from"), rows_of_text))
    return 0

"""`llmproxy check`: is the configuration right, and do the upstreams answer?"""

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from llmproxy.cli.configuration import BAD_CONFIGURATION, NO_UPSTREAM, loaded
from llmproxy.cli.table import table

if TYPE_CHECKING:
    from llmproxy.records import Upstream
    from llmproxy.routing.probe import Probe

WITHIN = 5.0  # seconds for each upstream; they are asked at the same time
SOMETHING_WRONG = 1  # the exit code


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser(
        "check", help="validate the configuration and ask every upstream how it is"
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print one line for each upstream."""
    from llmproxy.settings.upstreams import url_of

    configured = loaded()
    if configured is None:
        return BAD_CONFIGURATION
    for warning in configured.warnings:
        print(f"llmproxy: {warning}", file=sys.stderr)
    upstreams = configured.settings.upstreams
    if not upstreams:
        print(NO_UPSTREAM, file=sys.stderr)
        return BAD_CONFIGURATION
    probes = asyncio.run(_probe_all(upstreams))
    rows = [
        (
            upstream.name,
            url_of(upstream),
            "up" if probe.ok else "down",
            _models_or_cause(probe),
            f"{probe.seconds * 1000:.0f}",
        )
        for upstream, probe in zip(upstreams, probes, strict=True)
    ]
    print(table(("upstream", "url", "state", "models", "ms"), rows))
    return 0 if all(probe.ok for probe in probes) else SOMETHING_WRONG


async def _probe_all(upstreams: "tuple[Upstream, ...]") -> "list[Probe]":
    return await asyncio.gather(*(_probe(upstream) for upstream in upstreams))


async def _probe(upstream: "Upstream") -> "Probe":
    from llmproxy.routing.probe import probe
    from llmproxy.transport.connect import transport_for

    transport = transport_for(upstream)
    try:
        return await probe(transport, upstream, within=WITHIN)
    finally:
        await transport.aclose()


def _models_or_cause(probe: "Probe") -> str:
    if not probe.ok:
        return probe.detail
    return "not told" if probe.models is None else str(len(probe.models))

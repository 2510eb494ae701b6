"""`llmproxy check`: is the configuration right, and do the upstreams answer?"""

import argparse
import asyncio
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from llmproxy import clock
from llmproxy.cli.configuration import BAD_CONFIGURATION, NO_UPSTREAM, loaded
from llmproxy.cli.table import table

if TYPE_CHECKING:
    from llmproxy.records import Upstream
    from llmproxy.routing.probe import Probe

    Line = tuple[Upstream, Probe]

WITHIN = 5.0  # seconds for each upstream; they are asked at the same time
SOMETHING_WRONG = 1  # the exit code


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser(
        "check", help="validate the configuration and ask every upstream how it is"
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print one line for each upstream, those included that are found by a name or a file."""
    from llmproxy.settings.upstreams import url_of

    configured = loaded(makes_layers=True)
    if configured is None:
        return BAD_CONFIGURATION
    for warning in configured.warnings:
        print(f"llmproxy: {warning}", file=sys.stderr)
    upstreams = configured.settings.upstreams
    if not upstreams:
        print(NO_UPSTREAM, file=sys.stderr)
        return BAD_CONFIGURATION
    lines = asyncio.run(_ask_all(upstreams))
    rows = [
        (
            upstream.name,
            url_of(upstream),
            "up" if probe.ok else "down",
            _models_or_cause(probe),
            f"{probe.seconds * 1000:.0f}",
        )
        for upstream, probe in lines
    ]
    print(table(("upstream", "url", "state", "models", "ms"), rows))
    return 0 if all(probe.ok for _, probe in lines) else SOMETHING_WRONG


async def _ask_all(upstreams: "tuple[Upstream, ...]") -> "list[Line]":
    asked = await asyncio.gather(
        *(_look(each) if each.found_by else _ask(each) for each in upstreams)
    )
    return [line for lines in asked for line in lines]


async def _look(template: "Upstream") -> "list[Line]":
    """Ask every server that is found where a template says, or tell why there is none."""
    from llmproxy.routing.discovery.source import LookFailed
    from llmproxy.routing.discovery.watch import servers_now
    from llmproxy.routing.probe import Probe
    from llmproxy.settings.upstreams import read_server_file
    from llmproxy.transport.never_called import is_forbidden

    began = clock.now()
    cause = "nothing is found there"
    try:
        async with asyncio.timeout(WITHIN):
            found = await servers_now(
                template, read=partial(read_server_file, environ=os.environ), forbidden=is_forbidden
            )
    except TimeoutError:
        found, cause = (), f"no answer within {WITHIN:g} s"
    except LookFailed as exc:
        found, cause = (), str(exc)
    if not found:
        return [(template, Probe(False, cause, None, clock.now() - began))]
    return [line for lines in await asyncio.gather(*map(_ask, found)) for line in lines]


async def _ask(upstream: "Upstream") -> "list[Line]":
    from llmproxy.routing.probe import probe
    from llmproxy.transport.connect import transport_for

    transport = transport_for(upstream)
    try:
        return [(upstream, await probe(transport, upstream, within=WITHIN))]
    finally:
        await transport.aclose()


def _models_or_cause(probe: "Probe") -> str:
    if not probe.ok:
        return probe.detail
    return "not told" if probe.models is None else str(len(probe.models))

"""`python -m benchmarks.routing [scene...]`: policies before a fleet of modelled engines."""

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.hardship.kernel import all_cores_ns, own_ns, raise_descriptor_limit
from benchmarks.load.runner import describe_machine
from benchmarks.routing import page
from benchmarks.routing.scenes import CAST, SCENES, TARGETS
from benchmarks.routing.trial import Outcome, run

PAGE = Path(__file__).parents[1] / "ROUTING.md"

Played = dict[str, dict[str, list[Outcome]]]


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    raise_descriptor_limit()
    if options.again:
        played, others = _read(options.json)
    else:
        played, others = play(options.names or list(SCENES), options.rounds)
        if options.json is not None:
            told: dict[str, Any] = {
                name: {policy: [asdict(each) for each in some] for policy, some in rounds.items()}
                for name, rounds in played.items()
            }
            options.json.write_text(json.dumps({"others": others, "played": told}, indent=1) + "\n")
    print(page.targets(played))
    if options.write_page:
        command = shlex.join(["python", "-m", "benchmarks.routing", *given])
        PAGE.write_text(page.page(played, describe_machine(), command, others))
        print(f"page: {PAGE}")
    reached = [(each, each.reached(played.get(each.scene, {}))) for each in TARGETS]
    return int(any(figure and not target.holds(figure) for target, figure in reached))


def play(names: Sequence[str], rounds: int) -> tuple[Played, float]:
    """Play scenes, the policies taking turns; tell also how many cores others used meanwhile."""
    played: Played = {name: {policy: [] for policy in CAST[name]} for name in names}
    began, everybody, ours = time.monotonic(), all_cores_ns(), own_ns()
    for number in range(rounds):
        for name in names:
            cast = CAST[name]
            first = number % len(cast)
            for policy in (*cast[first:], *cast[:first]):
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    outcome = runner.run(run(SCENES[name], policy, number))
                played[name][policy].append(outcome)
            print(page.scene(name, played[name]), flush=True)
    used = all_cores_ns() - everybody - (own_ns() - ours)
    return played, max(0.0, used / 1e9 / (time.monotonic() - began))


def _read(path: Path) -> tuple[Played, float]:
    """Return what an earlier run has kept."""
    document = json.loads(path.read_text())
    return {
        name: {policy: [Outcome(**each) for each in some] for policy, some in rounds.items()}
        for name, rounds in document["played"].items()
    }, document["others"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing", description=(__doc__ or "").partition(": ")[2]
    )
    add = parser.add_argument
    add("names", nargs="*", choices=[[], *SCENES], metavar="scene", help=", ".join(SCENES))
    add("--rounds", type=int, default=3)
    add("--json", type=Path, metavar="FILE", help="keep the figures there")
    add("--again", action="store_true", help="measure nothing; tell what is kept")
    add("--write-page", action="store_true", help="write benchmarks/ROUTING.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.hardship [name...]`: hardships for the guarded server, and what it bore."""

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop

from benchmarks.hardship import (
    endless_heads,
    idle_sockets,
    large_bodies,
    leaving_clients,
    page,
    rejections,
    slow_sockets,
    stuck_readers,
    vanishing_clients,
)
from benchmarks.hardship.findings import Finding, Ordeal, exit_code
from benchmarks.hardship.kernel import all_cores_ns, own_ns, raise_descriptor_limit
from benchmarks.hardship.stage import Collapse
from benchmarks.load.runner import describe_machine

PAGE = Path(__file__).parents[1] / "HARDSHIP.md"

Trial = Callable[[float], Awaitable[list[Finding]]]  # minutes for what takes long

TRIALS: dict[str, tuple[str, Trial]] = {
    name.rpartition(".")[2]: ((module.__doc__ or "").strip(), module.findings)
    for name, module in (
        (each.__name__, each)
        for each in (
            endless_heads,
            slow_sockets,
            stuck_readers,
            rejections,
            idle_sockets,
            vanishing_clients,
            leaving_clients,
            large_bodies,
        )
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    kept = _read(options.json) if options.json is not None else {}
    if not options.again:
        for name in options.names or TRIALS:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                kept[name] = ordeal = runner.run(undergo(name, options.minutes))
            print(page.table([ordeal]), flush=True)
            if options.json is not None:
                told = {each: seen.to_json() for each, seen in kept.items()}
                options.json.write_text(json.dumps(told, indent=1) + "\n")
    ordeals = [kept[name] for name in TRIALS if name in kept]
    if options.write_page:
        command = shlex.join(["python", "-m", "benchmarks.hardship", *given])
        PAGE.write_text(page.page(ordeals, describe_machine(), command))
        print(f"page: {PAGE}")
    return exit_code(ordeals)


async def undergo(name: str, minutes: float) -> Ordeal:
    """Go through one hardship, and see who else used the machine meanwhile."""
    story, trial = TRIALS[name]
    raise_descriptor_limit()
    began, everybody, ours = time.monotonic(), all_cores_ns(), own_ns()
    found: list[Finding] = []
    broken = ""
    try:
        found = await trial(minutes)
    except (Collapse, OSError, ValueError, asyncio.IncompleteReadError) as exc:
        broken = f"{type(exc).__name__}: {exc}"
    seconds = time.monotonic() - began
    others = (all_cores_ns() - everybody - (own_ns() - ours)) / 1e9 / seconds
    return Ordeal(
        name=name,
        story=story,
        seconds=round(seconds, 1),
        others=max(0.0, others),
        findings=tuple(found),
        broken=broken,
    )


def _read(path: Path) -> dict[str, Ordeal]:
    """Return what earlier runs have kept there."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {name: Ordeal.from_json(each) for name, each in document.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hardship", description=(__doc__ or "").partition(": ")[2]
    )
    add = parser.add_argument
    add("names", nargs="*", choices=[[], *TRIALS], metavar="name", help=", ".join(TRIALS))
    add("--minutes", type=float, default=10.0, help="how long readers are stuck (10)")
    add("--json", type=Path, metavar="FILE", help="keep the figures there, beside earlier ones")
    add("--again", action="store_true", help="measure nothing; tell what is kept")
    add("--write-page", action="store_true", help="write benchmarks/HARDSHIP.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())

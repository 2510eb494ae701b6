"""`python -m benchmarks.micro`: measure, or (`--quick`) look whether everything runs."""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.micro.figures import Measured, this_machine
from benchmarks.micro.measuring import FULL, QUICK, Plan, calibrate, measure
from benchmarks.micro.registry import Benchmark, NoBenchmarkError, matching
from benchmarks.micro.report import report


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    # Read first: a file that is none should not be found out after a minute of measuring.
    earlier = _read(options.compare) if options.compare is not None else None
    try:
        chosen = matching(options.filter)
    except NoBenchmarkError as exc:
        raise SystemExit(str(exc)) from None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured = runner.run(measure_all(chosen, QUICK if options.quick else FULL))
    if options.json is not None:
        options.json.write_text(json.dumps(measured.to_json(), indent=1) + "\n")
    if options.quick:
        print(f"{len(measured.figures)} benchmarks run. Their times say nothing with --quick.")
    else:
        print(report(measured, earlier))


async def measure_all(chosen: Sequence[Benchmark], plan: Plan) -> Measured:
    """Measure one after the other."""
    calibrations = [calibrate()]
    figures = []
    for benchmark in chosen:
        if sys.stderr.isatty():
            print(f"\r\033[K{benchmark.name}", end="", file=sys.stderr, flush=True)
        figures.append(await measure(benchmark, plan))
        calibrations.append(calibrate())
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return Measured(this_machine(), statistics.median(calibrations), tuple(figures))


def _read(path: Path) -> Measured:
    try:
        return Measured.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SystemExit(f"{path} is not what --json has written: {exc}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__)
    parser.add_argument("filter", nargs="?", default="", help="only names that contain this")
    parser.add_argument("--quick", action="store_true", help="a few calls of each; no figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="against figures kept before")
    return parser


if __name__ == "__main__":
    main()

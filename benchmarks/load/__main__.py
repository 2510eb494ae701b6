"""`python -m benchmarks.load`: run the benchmark, or tell again what an earlier run has seen."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import plot, results_page, runner
from benchmarks.load.campaign import Campaign
from benchmarks.load.subjects import BARE, PEERS, Subject
from benchmarks.load.tables import remarks, tables

HERE = Path(__file__).parent
OUT = HERE / "out"
PAGE = HERE.parent / "RESULTS.md"
PICTURE = HERE.parent / "load.png"

KNOWN = {**PEERS, "llmproxy": BARE}
ALWAYS = ("nginx", "sglang-router", "naive", "llmproxy")
QUICK = ("nginx", "sglang-router", "llmproxy")


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    if options.hold:
        runner.hold(_known(options.hold))
        return
    if options.again:
        campaign = Campaign.from_json(json.loads(Path(options.again).read_text()))
        saved = Path(options.again)
    else:
        names = options.subjects or (QUICK if options.quick else ALWAYS)
        names = dict.fromkeys([*names, *options.peers])  # each once, in this order
        campaign = runner.run(
            [_known(name) for name in names],
            rounds=options.rounds or (3 if options.quick else 5),
            growth_rounds=0 if options.quick else options.growth_rounds,
            with_layers="llmproxy" in names and not options.quick,
            command=shlex.join(["python", "-m", "benchmarks.load", *given]),
        )
        OUT.mkdir(exist_ok=True)
        saved = OUT / time.strftime("%Y%m%d-%H%M%S.json")
        saved.write_text(json.dumps(campaign.to_json(), indent=1))

    print(*(f"{table.as_text()}\n" for table in tables(campaign)), sep="\n")
    print(*(f"* {remark}" for remark in remarks(campaign)), sep="\n")
    picture = PICTURE if options.write_results else saved.with_suffix(".png")
    drawn = _draw(campaign, picture)
    print(f"\nraw runs: {saved}" + (f"\npicture: {picture}" if drawn else ""))
    if options.write_results:
        PAGE.write_text(results_page.page(campaign, picture=drawn))
        print(f"results: {PAGE}")


def _draw(campaign: Campaign, target: Path) -> bool:
    try:
        plot.draw(campaign, target)
    except ImportError as exc:
        print(f"\nno picture: {exc} (pip install matplotlib)")
        return False
    return True


def _known(name: str) -> Subject:
    if name not in KNOWN:
        raise SystemExit(f"unknown subject {name!r}; there are {', '.join(KNOWN)}")
    return KNOWN[name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=(__doc__ or "").partition(": ")[2]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="3 rounds of the core workloads, in a minute")
    add("--rounds", type=int, default=0, help="rounds of the core workloads (5, quick: 3)")
    add("--growth-rounds", type=int, default=2, help="rounds with 10 to 5,000 streams (2)")
    add("--subjects", type=_names, default=[], help=f"only these: {','.join(KNOWN)}")
    add("--peers", type=_names, default=[], help="these too: haproxy,litellm,vllm-router")
    add("--write-results", action="store_true", help="write benchmarks/RESULTS.md and its picture")
    add("--again", metavar="FILE", help="tell and draw an earlier run from its raw file")
    add("--hold", metavar="SUBJECT", help="keep a subject under load, for a profiler")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()

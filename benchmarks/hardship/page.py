"""The table on the terminal, and `benchmarks/HARDSHIP.md`. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.hardship.findings import Finding, Ordeal

PAGE = """\
# What llmproxy withstands

Written by `{command}`; do not edit by hand.

Each figure that has a limit is held against it. *Undecided* is a delay beyond its limit while
the machine was too busy: a server that does nothing was slow as well, or the client was late with
its own requests. Measure it again when nobody else uses the machine.

## The machine

{machine}

{ordeals}
## How to repeat it

```sh
make hardship                                          # everything; some 20 minutes
python -m benchmarks.hardship stuck_readers --minutes 1
python -m benchmarks.hardship --json kept.json rejections   # measure one anew, keep the others
python -m benchmarks.hardship --json kept.json --again --write-page
```

The exit code is 1 when a figure does not hold, 2 when one is undecided, else 0. It needs Linux, and
a descriptor limit of 20,000 (`ulimit -Hn`), which it takes by itself where it may.

Every hardship has a `llmproxy serve` of its own, one worker, its log of requests thrown away, and
no layers but where it says so. Memory is the resident set of supervisor and worker
(`/proc/PID/smaps_rollup`), CPU the kernel's clock of both, waits are what a client in another
process saw.

## What the figures do not say

* **How much a machine can take.** Client, proxy and engine share the cores of one machine, and
  whoever else used it is named with each table. Delays are the first to suffer from that.
* **What the kernel holds.** Memory is that of the process; the buffers of a stuck reader's sockets
  are told beside it, as far as `/proc/net/tcp` shows them.
* **What the allocator keeps.** Freed memory need not go back to the system. What a first
  connection needs and all later ones use again is in the figures of one, not in those of many.
* **How it is over TLS.** Everything here is in the clear.
* **How it is with layers.** Keys, limits and caches bring state of their own.
"""


def table(ordeals: Sequence[Ordeal]) -> str:
    """Everything for a terminal."""
    lines: list[str] = []
    for ordeal in ordeals:
        rows = list(_rows(ordeal.findings))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
        lines += ["", f"{ordeal.name}: {ordeal.verdict}  ({_circumstances(ordeal)})"]
        for what, measured, limit, verdict in rows:
            lines.append(
                f"  {what.ljust(widths[0])}  {measured.rjust(widths[1])}  "
                f"{limit.rjust(widths[2])}  {verdict}".rstrip()
            )
    return "\n".join(lines)


def page(ordeals: Sequence[Ordeal], machine: Mapping[str, str], command: str) -> str:
    """The page."""
    return PAGE.format(
        command=command,
        machine="\n".join(f"* {name}: {value}" for name, value in machine.items()),
        ordeals="\n".join(_section(ordeal) for ordeal in ordeals),
    )


def _section(ordeal: Ordeal) -> str:
    story, _, more = ordeal.story.partition("\n\n")
    lines = [f"## {story.rstrip('.')}", ""]
    if more:
        lines += [more, ""]
    if ordeal.findings:
        lines += ["| | measured | limit | |", "|---|---:|---:|---|"]
        lines += [f"| {' | '.join(row)} |" for row in _rows(ordeal.findings)]
        lines.append("")
    return "\n".join([*lines, f"{_circumstances(ordeal)}.", ""])


def _rows(findings: Iterable[Finding]) -> Iterator[tuple[str, str, str, str]]:
    for finding in findings:
        limit = "" if finding.limit is None else f"≤ {_number(finding.limit)} {finding.unit}"
        verdict = str(finding.verdict)
        if finding.doubt and finding.limit is not None and finding.measured > finding.limit:
            verdict += f": {finding.doubt}"
        measured = f"{_number(finding.measured)} {finding.unit}"
        yield finding.what, measured.strip(), limit.strip(), verdict.strip("-")


def _circumstances(ordeal: Ordeal) -> str:
    told = f"{ordeal.seconds:.0f} s; others used {ordeal.others:.2f} cores meanwhile"
    if ordeal.busy:
        told += ", which is too many to believe a delay"
    return f"{told}; NOT FINISHED: {ordeal.broken}" if ordeal.broken else told


def _number(value: float) -> str:
    """Three digits that count."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"

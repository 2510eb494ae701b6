"""The tables of a campaign, as text for a terminal and as Markdown for a page."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.load.campaign import (
    CORE_STAGE,
    FIRST_CONTROL,
    GROWTH_STAGE,
    LAST_CONTROL,
    Campaign,
    Value,
)
from benchmarks.load.figures import NOTHING, Figure, difference, median, number, ratio, spread
from benchmarks.load.measurement import Measurement
from benchmarks.load.workloads import CORE_STREAMS, CORE_UNARY, GROWTH, MEMORY_AT

BASES = ("nginx", "sglang-router")
STREAMS, UNARY = CORE_STREAMS.name, CORE_UNARY.name


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""

    def as_text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.title, ""]
        for row in (self.header, ["-" * width for width in widths], *self.rows):
            first, *rest = zip(row, widths, strict=True)
            cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *(["", self.remark] if self.remark else [])])

    def as_markdown(self) -> str:
        rule = ["---", *("---:" for _ in self.header[1:])]
        rows = ["| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows)]
        return "\n".join(
            [f"### {self.title}", "", *rows, *(["", self.remark] if self.remark else [])]
        )


def tables(campaign: Campaign) -> list[Table]:
    """Every table that has at least one row."""
    made = (cost(campaign), layers(campaign), delays(campaign), growth(campaign), memory(campaign))
    return [table for table in made if table.rows]


def cost(campaign: Campaign) -> Table:
    """CPU per chunk and per request, and how it compares."""
    bases = [base for base in BASES if base in campaign.versions]
    header = ["", "µs per chunk", *(f"x {base}" for base in bases)]
    header += ["µs per request", *(f"x {base}" for base in bases), "requests/s per core"]
    rows = []
    for subject in _proxies(campaign):
        row = [subject]
        for workload in (STREAMS, UNARY):
            own = campaign.by_round(subject, CORE_STAGE, workload, _cpu)
            row.append(spread(Figure.of(own.values())))
            for base in bases:
                other = campaign.by_round(base, CORE_STAGE, workload, _cpu)
                row.append(median(ratio(own, other)))
        per_core = Figure.of(
            1e6 / used for used in campaign.by_round(subject, CORE_STAGE, UNARY, _cpu).values()
        )
        rows.append([*row, median(per_core)])
    return Table(
        "CPU of the proxy",
        header,
        rows,
        f"{STREAMS}; {UNARY}. Median (smallest to largest) over the rounds, all threads and "
        "children; ratios are medians of the ratios within a round.",
    )


def layers(campaign: Campaign) -> Table:
    """What each layer adds to the bare proxy."""
    rows = []
    for subject in campaign.versions:
        if not subject.startswith("llmproxy+"):
            continue
        row = [subject]
        for workload in (STREAMS, UNARY):
            own = campaign.by_round(subject, CORE_STAGE, workload, _cpu)
            bare = campaign.by_round("llmproxy", CORE_STAGE, workload, _cpu)
            row += [spread(difference(own, bare)), median(ratio(own, bare))]
        rows.append(row)
    header = ["", "µs added per chunk", "x bare", "µs added per request", "x bare"]
    return Table("What a layer adds to llmproxy", header, rows)


def delays(campaign: Campaign) -> Table:
    """What a client waits longer than it would without a proxy, in µs."""
    rows = []
    for subject in _proxies(campaign):
        row = [subject]
        for name in ("first_token", "gap"):
            for value in (_p50(name), _p99(name)):
                own = campaign.by_round(subject, CORE_STAGE, STREAMS, value)
                direct = campaign.by_round("direct", CORE_STAGE, STREAMS, value)
                row.append(spread(difference(own, direct)))
        if any(campaign.by_round(subject, CORE_STAGE, STREAMS, _overloaded).values()):
            row[1:] = ["overloaded"] * 4
        reached = campaign.by_round(subject, CORE_STAGE, UNARY, lambda m: m.per_second)
        rows.append([*row, median(Figure.of(reached.values()))])
    header = ["", "first token p50", "p99", "gap p50", "p99", "requests/s measured"]
    return Table(
        "Added to direct, in µs",
        header,
        rows,
        "Gap: by how much a gap between two chunks is longer or shorter at the client than at the "
        "model server. Requests per second are what this machine reached with model server, "
        "proxy and load generator sharing its cores; overloaded: the proxy could not keep up.",
    )


def growth(campaign: Campaign) -> Table:
    """CPU per chunk while all streams are open; the chunks per second stay the same."""
    header = ["streams", *(f"{workload.streams:,}" for workload in GROWTH)]
    rows = [
        [subject, *(spread(Figure.of(steady(campaign, subject, w.name))) for w in GROWTH)]
        for subject in _proxies(campaign)
        if any(steady(campaign, subject, w.name) for w in GROWTH)
    ]
    return Table(
        "µs of CPU per chunk as streams grow",
        header,
        rows,
        "Always 5,000 chunks per second over all streams, and only the time in which all of them "
        "were open. A dash: not reached.",
    )


def memory(campaign: Campaign) -> Table:
    """Memory per open stream."""
    header = ["", *(f"at {streams:,} streams" for streams in MEMORY_AT)]
    rows = []
    for subject in _proxies(campaign):
        cells = [
            spread(Figure.of(kilobytes_per_stream(campaign, subject, streams)))
            for streams in MEMORY_AT
        ]
        if set(cells) != {NOTHING}:
            rows.append([subject, *cells])
    return Table(
        "KB per open stream",
        header,
        rows,
        "Proportional set size of the process tree with all streams open, less that after the "
        "warm-up. Socket buffers live in the kernel and are not in it.",
    )


def steady(campaign: Campaign, subject: str, workload: str) -> list[float]:
    """Cost per chunk while all streams were open, of the runs that reached that state."""
    values = campaign.by_round(
        subject, GROWTH_STAGE, workload, lambda m: m.steady_cpu_us if m.steady_units else 0.0
    )
    return [value for value in values.values() if value]


def kilobytes_per_stream(campaign: Campaign, subject: str, streams: int) -> list[float]:
    workload = next(w.name for w in GROWTH if w.streams == streams)
    return [
        (turn.measurements[workload].memory - turn.memory_before) / streams / 1000
        for turn in campaign.turns
        if (turn.subject, turn.stage) == (subject, GROWTH_STAGE)
        and workload in turn.measurements
        and turn.measurements[workload].memory
    ]


def remarks(campaign: Campaign) -> list[str]:
    """What a reader must know before believing a figure: fairness, faults, doubts, absences."""
    found = [*_fairness(campaign), *campaign.notes]
    found += [f"{name} is left out: {why}" for name, why in campaign.left_out.items()]
    seen: Counter[tuple[str, str, str]] = Counter()
    runs: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str, str], str] = {}
    for turn, workload, measured in campaign.runs():
        runs[turn.subject, workload] += 1
        told = [f"VOID: {measured.problem}"] if measured.problem else measured.doubts()
        for text in told:
            key = (turn.subject, workload, text.partition(" (")[0].partition(":")[0])
            seen[key] += 1
            example.setdefault(key, text)
    for (subject, workload, _), times in seen.items():
        text = example[subject, workload, _]
        found.append(f"{subject}, {workload}: {text}; {times} of {runs[subject, workload]} runs")
    return found


def _fairness(campaign: Campaign) -> list[str]:
    """The control run measures nothing but ourselves, so it shows how the machine changed."""
    told = []
    for workload, unit in ((STREAMS, "chunk"), (UNARY, "request")):
        pair = [
            list(campaign.by_round("direct", stage, workload, _harness).values())
            for stage in (FIRST_CONTROL, LAST_CONTROL)
        ]
        if all(pair):
            first, last = pair[0][0], pair[1][0]
            told.append(
                f"control, CPU of model server and load generator per {unit}: "
                f"{number(first)} µs at first, {number(last)} µs at last "
                f"({100 * (last / first - 1):+.0f} %)"
            )
    return told


def _proxies(campaign: Campaign) -> list[str]:
    return [name for name in campaign.versions if name != "direct"]


def _cpu(measured: Measurement) -> float:
    return measured.cpu_us


def _harness(measured: Measurement) -> float:
    return measured.harness_cpu_us


def _overloaded(measured: Measurement) -> float:
    return measured.overloaded


def _p50(name: str) -> Value:
    return lambda measured: measured.quantiles[name].p50


def _p99(name: str) -> Callable[[Measurement], float]:
    return lambda measured: measured.quantiles[name].p99

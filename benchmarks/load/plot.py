"""The picture of a campaign. Needs matplotlib, which nothing else here does."""

from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.load.campaign import CORE_STAGE, Campaign
from benchmarks.load.figures import Figure, number, ratio
from benchmarks.load.tables import STREAMS, UNARY, kilobytes_per_stream, steady
from benchmarks.load.workloads import GROWTH, MEMORY_AT

OURS, LAYERED, OTHERS, FAINT = "#c2410c", "#f0a57a", "#475569", "#e2e8f0"
TEXT = "#1e293b"
LINES = ("#0f766e", "#475569", "#7c3aed", "#0369a1", "#a16207", "#be185d")


def draw(campaign: Campaign, target: Path) -> None:
    """Write the picture as PNG; ImportError says that matplotlib is missing."""
    pyplot: Any = import_module("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    pyplot.rcParams.update({"font.size": 10, "text.color": TEXT, "axes.labelcolor": TEXT})
    subjects = [name for name in campaign.versions if name != "direct"]
    grown = any(steady(campaign, name, w.name) for name in subjects for w in GROWTH)
    height = 1.7 + 0.38 * len(subjects)
    figure, axes = pyplot.subplots(
        2 if grown else 1, 2, figsize=(13, height + (5.0 if grown else 0)), squeeze=False,
        height_ratios=[height, 5.0] if grown else [height], layout="constrained",
    )  # fmt: skip
    _costs(axes[0][0], campaign, subjects, STREAMS, "CPU per streamed chunk, µs")
    _costs(axes[0][1], campaign, subjects, UNARY, "CPU per unary request, µs")
    if grown:
        _growth(axes[1][0], campaign, subjects)
        _memory(axes[1][1], campaign, subjects)
    machine = campaign.machine
    figure.suptitle(
        f"What a proxy costs: {machine['cores']} cores of {machine['processor']}, "
        f"{machine['date']}",
        x=0.01, ha="left", fontsize=13, fontweight="bold",
    )  # fmt: skip
    figure.savefig(target, dpi=130)
    pyplot.close(figure)


def _costs(axis: Any, campaign: Campaign, subjects: list[str], workload: str, title: str) -> None:
    """A dot for the median, a line for the spread; a logarithmic scale has no place for bars."""
    base = _costs_by_round(campaign, "nginx", workload)
    for row, subject in enumerate(subjects):
        own = _costs_by_round(campaign, subject, workload)
        found = Figure.of(own.values())
        if found is None:
            continue
        colour = _colour(subject)
        axis.plot([found.low, found.high], [row, row], color=colour, linewidth=2.5, alpha=0.45)
        axis.plot(found.median, row, "o", color=colour, markersize=7)
        label = number(found.median)
        if subject != "nginx" and (times := ratio(own, base)):
            label += f"  ({number(times.median)} x nginx)"
        axis.annotate(
            label, (found.high, row), xytext=(8, 0), textcoords="offset points",
            va="center", color=colour, fontsize=9,
        )  # fmt: skip
    axis.set_xscale("log")
    left, right = axis.get_xlim()
    axis.set_xlim(left * 0.85, right * (right / left) ** 0.45)  # room for the labels
    axis.set_yticks(range(len(subjects)), subjects)
    axis.set_ylim(len(subjects) - 0.4, -0.6)
    _plain_numbers(axis.xaxis)
    _finish(axis, title, "x")


def _growth(axis: Any, campaign: Campaign, subjects: list[str]) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for place, subject in enumerate(subjects):
        points = [
            (w.streams, found.median)
            for w in GROWTH
            if (found := Figure.of(steady(campaign, subject, w.name)))
        ]
        if points:
            colour = _line_colour(subject, place)
            axis.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, markersize=5)
            ends.append((*points[-1], subject, colour))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(8, 40_000)
    axis.set_xticks([w.streams for w in GROWTH], [f"{w.streams:,}" for w in GROWTH])
    axis.minorticks_off()
    _plain_numbers(axis.yaxis)
    axis.set_xlabel("open streams (always 5,000 chunks per second)")
    _finish(axis, "CPU per chunk while all streams are open, µs", "y")
    _label_ends(axis, ends)


def _label_ends(axis: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Name each line at its end, and push names apart that would lie on each other."""
    axis.figure.canvas.draw()
    lowest = float("-inf")
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        height = axis.transData.transform((x, y))[1]
        lowest = max(height, lowest + 17)
        axis.annotate(
            name, (x, y), xytext=(9, (lowest - height) * 72 / axis.figure.dpi),
            textcoords="offset points", va="center", color=colour, fontsize=9,
        )  # fmt: skip


def _memory(axis: Any, campaign: Campaign, subjects: list[str]) -> None:
    shown = [s for s in subjects if any(kilobytes_per_stream(campaign, s, n) for n in MEMORY_AT)]
    thickness = 0.36
    for row, subject in enumerate(shown):
        for place, streams in enumerate(MEMORY_AT):
            found = Figure.of(kilobytes_per_stream(campaign, subject, streams))
            if found is None:
                continue
            y = row + (place - 0.5) * thickness
            alpha = 0.5 if place == 0 else 1.0
            axis.barh(y, found.median, thickness * 0.9, color=_colour(subject), alpha=alpha)
            axis.annotate(
                f"{number(found.median)}  at {streams:,}", (max(found.median, 0), y),
                xytext=(6, 0), textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
    axis.set_yticks(range(len(shown)), shown)
    axis.invert_yaxis()
    axis.margins(x=0.25)
    _finish(axis, "Memory per open stream, KB", "x")


def _costs_by_round(campaign: Campaign, subject: str, workload: str) -> dict[int, float]:
    return campaign.by_round(subject, CORE_STAGE, workload, lambda measured: measured.cpu_us)


def _colour(subject: str) -> str:
    if subject == "llmproxy":
        return OURS
    return LAYERED if subject.startswith("llmproxy") else OTHERS


def _line_colour(subject: str, place: int) -> str:
    return _colour(subject) if subject.startswith("llmproxy") else LINES[place % len(LINES)]


def _plain_numbers(axis: Any) -> None:
    ticker: Any = import_module("matplotlib.ticker")
    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=steps))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _finish(axis: Any, title: str, grid: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(axis=grid, color=FAINT)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", length=0)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(side == "bottom")
        axis.spines[side].set_color(FAINT)

"""The table on the terminal."""

import math
from collections.abc import Iterator

from benchmarks.micro.figures import Change, Figure, Measured, changes

HEADER = ("", "per", "least ns", "median ns", "spread", "x loop")


def report(measured: Measured, earlier: Measured | None = None) -> str:
    """Return everything there is to tell, as text."""
    compared = changes(measured, earlier) if earlier is not None else {}
    header = [*HEADER, "x earlier"] if earlier is not None else list(HEADER)
    rows = []
    for figure in measured.figures:
        row = _row(figure)
        if earlier is not None:
            row.append(_compared(compared.get(figure.name)))
        rows.append(row)
    lines = [*_aligned([header, *rows]), "", *_remarks(measured, earlier)]
    return "\n".join(lines)


def _row(figure: Figure) -> list[str]:
    spread = f"{figure.spread / figure.median:.0%}" if figure.median > 0 else "-"
    return [
        figure.name,
        figure.unit,
        _ns(figure.minimum),
        _ns(figure.median),
        spread,
        f"{figure.calibrated:.2f}",
    ]


def _ns(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _compared(change: Change | None) -> str:
    if change is None:
        return "new"
    if math.isnan(change.ratio):
        return "-"
    return f"{change.ratio:.2f}{' !' if change.clear else '  '}"


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        name, unit, *figures = (
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([name, unit, *figures]).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)


def _remarks(measured: Measured, earlier: Measured | None) -> Iterator[str]:
    machine = ", ".join(f"{name} {value}" for name, value in measured.machine.items())
    yield f"CPU of this process per unit, on {machine}."
    yield f"x loop: in passes of the calibration loop, {measured.calibration_ns:,.0f} ns each."
    yield "Parts are measured by themselves, in warm caches; in `whole` they share them, and the"
    yield "same work takes up to half as long again: the parts do not add up to it."
    if earlier is None:
        return
    yield "x earlier: x loop then and now; `!` where no repeat of the one reaches the other."
    names = {figure.name for figure in measured.figures}
    gone = [figure.name for figure in earlier.figures if figure.name not in names]
    if gone:
        yield f"Not measured this time: {', '.join(gone)}."
    if earlier.machine != measured.machine:
        was = ", ".join(f"{name} {value}" for name, value in earlier.machine.items())
        yield f"The earlier run was made on {was}."

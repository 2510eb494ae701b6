"""From samples to figures, tables and comparisons."""

import math
from itertools import pairwise

import pytest

from benchmarks.micro.figures import Figure, Measured, Sample, change, changes
from benchmarks.micro.measuring import Plan, calibrate, enough
from benchmarks.micro.registry import Work
from benchmarks.micro.report import report

MACHINE = {"python": "3.11.9"}


def figure(name: str, *ns: float, loop: float = 100.0) -> Figure:
    """A figure from repeats on a machine whose calibration loop takes `loop` ns."""
    return Figure.of(name, "call", 1000, [Sample(each, loop) for each in ns])


def test_a_figure_tells_least_middle_and_spread() -> None:
    """And its cost in passes of the calibration loop."""
    made = figure("a", 100, 500, 200, 300, 400)

    assert (made.minimum, made.median, made.spread) == (100, 300, 200)
    assert (made.calibrated, made.calibrated_least, made.calibrated_most) == (3, 1, 5)


def test_each_repeat_is_held_against_the_calibration_next_to_it() -> None:
    """A machine that is twice as slow for a while is so for both."""
    samples = [Sample(100, 10), Sample(200, 20), Sample(400, 40)]

    assert Figure.of("a", "call", 1, samples).calibrated == 10


def test_a_faster_machine_is_no_change() -> None:
    """Runs of two machines are compared by what they take of their own loops."""
    compared = change(figure("a", 50, 51, 52, loop=50.0), figure("a", 100, 102, 104))

    assert compared.ratio == pytest.approx(1.0)
    assert not compared.clear


@pytest.mark.parametrize(
    ("now", "clear"),
    [
        ((150, 151, 152), True),  # none of them as low as any of the earlier
        ((99, 151, 152), False),
        ((103, 104, 105), False),  # apart, and too little to be worth a word
        ((50, 51, 52), True),
    ],
)
def test_a_change_is_clear_when_no_repeat_reaches_the_other_run(
    now: tuple[float, ...], clear: bool
) -> None:
    """And when it is worth a word."""
    assert change(figure("a", *now), figure("a", 100, 101, 102)).clear is clear


def test_nothing_is_told_in_terms_of_nothing() -> None:
    """A difference of two measurements may have come out below zero."""
    assert math.isnan(change(figure("a", 1.0), figure("a", -1.0)).ratio)


def test_the_table_names_what_is_new_gone_and_changed() -> None:
    """One line for each figure of this run, one for those that are missing."""
    earlier = Measured(MACHINE, 100.0, (figure("was", 1), figure("slower", 100, 101, 102)))
    now = Measured(MACHINE, 100.0, (figure("slower", 200, 202, 204), figure("fresh", 5)))

    lines = report(now, earlier).splitlines()

    assert lines[2].split()[-2:] == ["2.00", "!"]
    assert lines[3].split()[-1] == "new"
    assert "Not measured this time: was." in lines
    assert not any("earlier run was made on" in line for line in lines)
    assert set(changes(now, earlier)) == {"slower"}


def test_another_machine_is_told() -> None:
    """Nobody takes another Python for a regression."""
    earlier = Measured({"python": "3.13.1"}, 100.0, (figure("a", 1),))

    told = report(Measured(MACHINE, 100.0, (figure("a", 1),)), earlier)

    assert "The earlier run was made on python 3.13.1." in told


def test_columns_line_up() -> None:
    """Names to the left, figures to the right; small ones with a decimal."""
    lines = report(Measured(MACHINE, 100.0, (figure("a", 12345), figure("longer", 7)))).splitlines()

    assert lines[:4] == [
        "        per   least ns  median ns  spread  x loop",
        "------  ----  --------  ---------  ------  ------",
        "a       call    12,345     12,345      0%  123.45",
        "longer  call       7.0        7.0      0%    0.07",
    ]


def test_a_run_survives_its_file() -> None:
    """What was kept is what is read."""
    measured = Measured(MACHINE, 100.0, (figure("a", 1, 2, 3),))

    assert Measured.from_json(measured.to_json()) == measured


def test_the_calibration_loop_takes_time() -> None:
    """Nothing is divided by zero."""
    assert calibrate() > 0


async def test_calls_are_added_until_they_fill_a_repeat() -> None:
    """Never more than twenty times as many as were tried; a set number is a set number."""
    tried: list[int] = []

    async def run(count: int) -> int:
        tried.append(count)
        for _ in range(count):
            calibrate()
        return count

    plan = Plan(sample=0.02, repeats=1)
    count = await enough("a", Work(run), plan)

    assert count == tried[-1] > 1
    assert all(then <= 20 * before for before, then in pairwise(tried))
    assert await enough("a", Work(run), Plan(sample=1.0, repeats=1, most=3)) == 3

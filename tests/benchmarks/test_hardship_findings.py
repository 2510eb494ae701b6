"""When a figure holds, and what is told of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.hardship import page
from benchmarks.hardship.findings import (
    Finding,
    Ordeal,
    Verdict,
    exit_code,
    growth,
    out_of_order,
    paired,
    quantile,
)

HOLDS = Finding(what="a", measured=5, unit="ms", limit=5)
FAILS = Finding(what="b", measured=5.1, unit="ms", limit=5)
UNDECIDED = Finding(what="c", measured=9, unit="ms", limit=5, doubt="the bare server needs 7 ms")
TOLD = Finding(what="d", measured=1e9, unit="KiB")


def ordeal(*findings: Finding, others: float = 0.0, broken: str = "") -> Ordeal:
    return Ordeal(
        name="n", story="S.\n\nMore.", seconds=1, others=others, findings=findings, broken=broken
    )


def test_a_limit_may_be_reached_and_not_passed() -> None:
    """The limits are written as `at most`."""
    assert [each.verdict for each in (HOLDS, FAILS, TOLD)] == [
        Verdict.HOLDS,
        Verdict.FAILS,
        Verdict.TOLD,
    ]


def test_doubt_excuses_a_delay_and_never_passes_it() -> None:
    """It takes nothing from a figure that holds, either."""
    held = Finding(what="e", measured=4, unit="ms", limit=5, doubt="a busy machine")

    assert UNDECIDED.verdict is Verdict.UNDECIDED
    assert held.verdict is Verdict.HOLDS


def test_the_worst_figure_decides() -> None:
    """1 for one that does not hold, 2 for one that is undecided."""
    assert exit_code([ordeal(HOLDS, TOLD)]) == 0
    assert exit_code([ordeal(HOLDS, UNDECIDED)]) == 2
    assert exit_code([ordeal(UNDECIDED), ordeal(FAILS), ordeal(HOLDS)]) == 1


def test_what_could_not_be_finished_does_not_hold() -> None:
    """However good the figures were until then."""
    assert exit_code([ordeal(HOLDS, broken="the proxy does not start")]) == 1


def test_the_table_says_all_of_it() -> None:
    """Limit, measured, verdict, doubt, and who else was there."""
    told = page.table([ordeal(HOLDS, FAILS, UNDECIDED, TOLD, others=0.6)])

    assert "DOES NOT HOLD" in told
    assert "≤ 5 ms" in told and "5.10 ms" in told
    assert "undecided: the bare server needs 7 ms" in told
    assert "1,000,000,000 KiB" in told
    assert "too many to believe a delay" in told
    assert "NOT FINISHED: gone" in page.table([ordeal(broken="gone")])


def test_the_page_has_a_section_for_each() -> None:
    """With its story, and the machine."""
    told = page.page([ordeal(HOLDS)], {"cores": "2"}, "python -m x")

    assert "## S\n\nMore.\n" in told
    assert "| a | 5 ms | ≤ 5 ms | holds |" in told
    assert "* cores: 2" in told and "`python -m x`" in told


def test_a_run_can_be_told_again() -> None:
    """From what was kept of it."""
    seen = ordeal(HOLDS, UNDECIDED, others=0.1)

    assert Ordeal.from_json(seen.to_json()) == seen


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_was_really_seen(values: list[float], share: float) -> None:
    """Nothing is made up in between."""
    assert quantile(values, share) in values
    assert quantile(values, 1.0) == max(values)


def test_nothing_measured_is_no_figure() -> None:
    """A p99 of no requests would be a pass."""
    with pytest.raises(ValueError, match="nothing was measured"):
        quantile([], 0.99)
    with pytest.raises(ValueError, match="too few"):
        growth([(0, 1)], since=0)


def test_a_ratio_is_taken_within_each_round() -> None:
    """What slowed the machine in one round slowed both."""
    assert paired([1, 10, 100], [2, 20, 100]) == 2


def test_growth_begins_after_the_warm_up() -> None:
    """Neither what came before nor one sample that sticks out is a trend."""
    plateau = [(float(at), 100.0 if at >= 20 else float(at)) for at in range(120)]
    plateau[119] = (119.0, 500.0)
    slope = [(float(at), float(at)) for at in range(100)]

    assert growth(plateau, since=20) == 0
    assert growth(slope, since=0) == pytest.approx(90)


@given(st.permutations(range(8)))
def test_only_the_order_of_age_counts_as_order(closed: list[int]) -> None:
    """0 exactly when the oldest went first, all the way."""
    assert (out_of_order(closed) == 0) == (closed == sorted(closed))

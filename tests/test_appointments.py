"""How late the event loop is said to be."""

import pytest

from llmproxy.appointments import LONGEST, PERIOD, Appointments


def test_a_loop_that_comes_in_time_is_not_late() -> None:
    """Each appointment is told once, and the next is on the grid."""
    appointments = Appointments(100.0)

    assert appointments.until_next(100.0) == pytest.approx(PERIOD)
    assert appointments.kept(100.0 + PERIOD) == [pytest.approx(0.0, abs=1e-9)]
    assert appointments.kept(100.0 + PERIOD) == []
    assert appointments.until_next(100.0 + 1.5 * PERIOD) == pytest.approx(PERIOD / 2)


def test_whoever_comes_too_early_has_kept_nothing() -> None:
    """A timer may ring before its time, by the tick of a coarser clock."""
    appointments = Appointments(100.0)

    assert appointments.kept(100.0 + PERIOD / 2) == []
    assert appointments.until_next(100.0 + PERIOD / 2) == pytest.approx(PERIOD / 2)


def test_a_standstill_counts_as_often_as_it_made_somebody_wait() -> None:
    """One of 400 ms is not one late look among hundreds that were in time."""
    appointments = Appointments(100.0)

    late = appointments.kept(100.0 + PERIOD + 0.4)

    assert len(late) == int(0.4 / PERIOD) + 1
    assert late[0] == pytest.approx(0.4)
    assert late == sorted(late, reverse=True)
    assert 0 <= late[-1] < PERIOD


def test_a_process_that_was_stopped_does_not_count_for_hours() -> None:
    """It would be the next standstill."""
    appointments = Appointments(100.0)

    late = appointments.kept(100.0 + 3600)

    assert late[0] == pytest.approx(LONGEST)
    assert len(late) <= LONGEST / PERIOD + 1
    assert appointments.until_next(100.0 + 3600) <= PERIOD

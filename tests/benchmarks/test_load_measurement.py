"""Figures of one run, and the reasons to doubt them."""

from dataclasses import replace

import pytest

from benchmarks.load.measurement import Measurement, Quantiles

SECOND = 1_000_000_000


def test_quantiles_are_values_that_were_seen() -> None:
    """Nearest rank, in microseconds: no value is made up between two others."""
    seen = Quantiles.of([1000 * n for n in range(1, 101)])

    assert seen == Quantiles(p50=51, p99=100)


def test_nothing_has_no_quantiles_worth_a_crash() -> None:
    """An empty sample gives zeros."""
    assert Quantiles.of([]) == Quantiles(0, 0)


def test_cost_is_cpu_over_units() -> None:
    """Microseconds of CPU, however long the run took."""
    run = Measurement(units=1000, wall_ns=5 * SECOND, subject_cpu_ns=8_200_000)

    assert run.cpu_us == pytest.approx(8.2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"generator_cpu_ns": 9 * SECOND}, "load generator was", id="busy_generator"),
        pytest.param({"server_cpu_ns": 9 * SECOND}, "model server was", id="busy_model_server"),
        pytest.param({"generator_waited_ns": SECOND}, "measured itself", id="no_core_to_run_on"),
        pytest.param({"steady_units": 0}, "never all open", id="never_all_open"),
        pytest.param({"script_ns": 5 * SECOND}, "did not keep up", id="overloaded_subject"),
    ],
)
def test_a_run_says_why_it_may_mislead(changed: dict[str, int], said: str) -> None:
    """Whoever was the bottleneck is named."""
    sound = Measurement(
        units=10_000,
        wall_ns=10 * SECOND,
        script_ns=10 * SECOND,
        steady_units=9_000,
        quantiles={"transit": Quantiles(100, 200)},
    )

    assert not sound.doubts()
    (doubt,) = replace(sound, **changed).doubts()  # type: ignore[arg-type]

    assert said in doubt


def test_a_measurement_survives_its_file() -> None:
    """What is told again later is what was measured."""
    run = Measurement(units=10, wall_ns=5, quantiles={"gap": Quantiles(1, 2)}, memory=7)

    assert Measurement.from_json(run.to_json()) == run

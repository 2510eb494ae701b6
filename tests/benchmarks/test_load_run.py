"""Model server and load generator against each other, as real processes."""

from benchmarks.load.runner import staged
from benchmarks.load.subjects import DIRECT
from benchmarks.load.workloads import Streams, Unary


def test_direct_runs_are_verified_and_paced() -> None:
    """With nobody in between every stream is right, on time, and open beside the others."""
    script = Streams(streams=10, chunks=100, gap_ms=5)
    with staged(DIRECT) as stage:
        streamed = stage.measure(script)
        asked = stage.measure(Unary(connections=4, requests=10))

    assert (streamed.problem, asked.problem) == ("", "")
    assert (streamed.units, asked.units) == (1000, 40)
    assert streamed.wall_ns / 1e9 > 0.99 * script.script_seconds - 0.02
    assert 0 < streamed.steady_units <= 1000
    assert streamed.subject_cpu_ns == 0 and streamed.server_cpu_ns > 0

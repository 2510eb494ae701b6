"""How a benchmark is measured.

CPU time of this process, not wall time: a machine that is busy elsewhere adds little to it.
What it still adds (a slower clock, a cold cache) strikes the calibration loop as well, which
runs between the repeats and is the same on every machine.
"""

import gc
import time

from benchmarks.micro.figures import Figure, Sample
from benchmarks.micro.registry import Benchmark, Run, Work

CALIBRATION_PASSES = 2_000


class WorkNotDoneError(Exception):
    """A benchmark did not do what it would have been measured for."""


class Plan:
    """How long to measure each benchmark."""

    def __init__(self, *, sample: float, repeats: int, most: int | None = None) -> None:
        self.sample_ns = int(sample * 1e9)  # of CPU, that one repeat takes at least
        self.repeats = repeats
        self.most = most  # calls in a repeat


FULL = Plan(sample=0.03, repeats=11)
QUICK = Plan(sample=0.0, repeats=2, most=3)


async def measure(benchmark: Benchmark, plan: Plan) -> Figure:
    """Measure one benchmark."""
    samples: list[Sample] = []
    async with benchmark.prepare() as work:
        # As `serve` does, so that what others have left behind is not looked through.
        gc.collect()
        gc.freeze()
        try:
            count = await enough(benchmark.name, work, plan)
            before = calibrate()
            for _ in range(plan.repeats):
                used = await spent(benchmark.name, work.run, count)
                if work.without is not None:
                    used -= await spent(benchmark.name, work.without, count)
                after = calibrate()
                samples.append(Sample(used / count, (before + after) / 2))
                before = after
        finally:
            gc.unfreeze()
    return Figure.of(benchmark.name, benchmark.unit, count, samples)


async def enough(name: str, work: Work, plan: Plan) -> int:
    """Return how many calls fill a repeat; makes them, which warms everything up."""
    if plan.most is not None:
        return plan.most
    count = 1
    while (used := await spent(name, work.run, count)) < plan.sample_ns:
        # Aimed a little too high, so that the next look is the last; early looks, in which
        # something is done for the first time, are not believed too much.
        wanted = int(count * 1.1 * plan.sample_ns / max(used, 1)) + 1
        count = min(wanted, count * 20)
    return count


async def spent(name: str, run: Run, count: int) -> int:
    """Return the nanoseconds of CPU that so many calls took."""
    began = time.process_time_ns()
    done = await run(count)
    used = time.process_time_ns() - began
    if done != count:
        raise WorkNotDoneError(f"{name}: {done} of {count} came out at the far end")
    return used


def calibrate() -> float:
    """Return what one pass of the calibration loop takes on this machine, now, in ns."""
    began = time.process_time_ns()
    _work_a_fixed_amount(CALIBRATION_PASSES)
    return (time.process_time_ns() - began) / CALIBRATION_PASSES


def _work_a_fixed_amount(passes: int) -> int:
    """Do what a proxy does, in small: calls, dictionaries, bytes, attributes.

    Never to be changed: figures of earlier runs are told in it.
    """
    headers = [(b"host", b"a"), (b"content-type", b"application/json"), (b"accept", b"*/*")]
    total = 0
    for number in range(passes):
        message = {"type": "http.response.body", "body": b"%x\r\n" % number, "more_body": True}
        kept = [header for header in headers if header[0] != b"host"]
        total += len(message["body"]) + len(_joined(kept))  # type: ignore[arg-type]
    return total


def _joined(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])

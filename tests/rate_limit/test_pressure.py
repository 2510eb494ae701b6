"""When new work is refused, and when idle connections are closed."""

import asyncio
from pathlib import Path

import pytest

from llmproxy.rate_limit.cgroup import ControlGroup, watch
from llmproxy.rate_limit.pressure import Memory, Pressure
from tests.support.calls import eventually

GIB = 1 << 30


def busy() -> Pressure:
    """Return the pressure on a process with one request at work."""
    pressure = Pressure()
    pressure.running = 1
    return pressure


# The event loop


def test_nothing_is_wrong_at_first() -> None:
    """Who has not been told anything refuses nobody."""
    assert not busy().shedding


def test_a_loop_that_is_late_for_a_second() -> None:
    """More than 100 ms at every look; until the second is over nothing happens."""
    pressure = busy()
    seen = []
    for tick in range(8):
        pressure.lag(0.15, 10.0 + tick * 0.25)
        seen.append(pressure.shedding)

    assert seen == [False] * 4 + [True] * 4


def test_one_long_stop_is_enough() -> None:
    """A loop that stood for a second has been late for one."""
    pressure = busy()
    pressure.lag(1.2, 10.0)

    assert pressure.shedding


@pytest.mark.parametrize("late", [0.0, 0.1])
def test_being_in_time_once_ends_it(late: float) -> None:
    """And the second begins anew."""
    pressure = busy()
    pressure.lag(5.0, 10.0)
    pressure.lag(late, 10.1)
    after = pressure.shedding
    pressure.lag(0.2, 10.3)

    assert not after
    assert not pressure.shedding


# Memory


@pytest.mark.parametrize(("used", "sheds"), [(0, False), (85, False), (86, True), (100, True)])
def test_memory_near_its_end(used: int, sheds: bool) -> None:
    """Above 85 % new work is refused."""
    pressure = busy()
    pressure.memory(Memory(used, 100))

    assert pressure.shedding is sheds


def test_memory_that_is_free_again() -> None:
    """What was refused is taken again; so it is when nothing can be read any more."""
    pressure = busy()
    states = []
    for found in (Memory(90, 100), Memory(50, 100), Memory(90, 100), None):
        pressure.memory(found)
        states.append(pressure.shedding)

    assert states == [True, False, True, False]


def test_idle_connections_go_last() -> None:
    """Above 95 % they are closed, at each look anew."""
    closed = 0

    def close() -> None:
        nonlocal closed
        closed += 1

    pressure = Pressure(relieve=close)
    seen = []
    for used in (90, 95, 96, 99, 90):
        pressure.memory(Memory(used, 100))
        seen.append(closed)

    assert seen == [0, 0, 1, 2, 2]


def test_with_nothing_at_work_nothing_is_refused() -> None:
    """Otherwise memory that is never given back would be the end of all service."""
    pressure = Pressure()
    pressure.memory(Memory(99, 100))
    pressure.lag(5.0, 10.0)

    assert not pressure.shedding


def test_late_and_short_are_two_things() -> None:
    """Either is reason enough, whatever the other says."""
    pressure = busy()
    pressure.memory(Memory(90, 100))
    pressure.lag(0.0, 10.0)
    short = pressure.shedding
    pressure.lag(5.0, 20.0)
    pressure.memory(Memory(10, 100))

    assert short
    assert pressure.shedding


# Control groups, as files


def group(path: Path, limit: str, used: int, files: int = 0) -> None:
    """Write a group as the kernel shows it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 1\nfile 2\ninactive_file {files}\nactive_file 3\n")


def in_group(tmp_path: Path, path: str) -> ControlGroup:
    (tmp_path / "ours").write_text(f"4:memory:/old/style\n0::{path}\n")
    return ControlGroup(tmp_path / "mount", tmp_path / "ours")


def test_the_limit_of_a_container(tmp_path: Path) -> None:
    """Seen from inside, the group is the root of all."""
    group(tmp_path / "mount", str(2 * GIB), GIB)

    assert in_group(tmp_path, "/").memory() == Memory(GIB, 2 * GIB)


def test_files_in_memory_are_no_use_of_memory(tmp_path: Path) -> None:
    """The kernel drops them when it needs to."""
    group(tmp_path / "mount", str(2 * GIB), 2 * GIB, files=GIB)

    assert in_group(tmp_path, "/").memory() == Memory(GIB, 2 * GIB)


def test_the_nearest_limit_counts(tmp_path: Path) -> None:
    """Limits may be set on any group around ours."""
    group(tmp_path / "mount/system", str(4 * GIB), 3 * GIB)
    group(tmp_path / "mount/system/llmproxy", str(2 * GIB), GIB)
    group(tmp_path / "mount/other", "1000", 1000)

    assert in_group(tmp_path, "/system/llmproxy").memory() == Memory(3 * GIB, 4 * GIB)


def test_a_group_outside_of_what_can_be_seen(tmp_path: Path) -> None:
    """Its path leads out of the tree, and is not followed."""
    group(tmp_path / "mount", str(2 * GIB), GIB)
    group(tmp_path / "elsewhere", "1000", 1000)

    assert in_group(tmp_path, "/../elsewhere").memory() == Memory(GIB, 2 * GIB)


@pytest.mark.parametrize("limit", ["max", "0", "rubbish", ""])
def test_no_limit(tmp_path: Path, limit: str) -> None:
    """Then there is nothing to be near to."""
    group(tmp_path / "mount", limit, GIB)

    assert in_group(tmp_path, "/").memory() is None


def test_no_control_groups(tmp_path: Path) -> None:
    """Other systems have none, and old ones have others."""
    assert ControlGroup(tmp_path / "none", tmp_path / "none").memory() is None


def test_files_that_vanish(tmp_path: Path) -> None:
    """A look that fails is a look that has found nothing."""
    group(tmp_path / "mount", str(2 * GIB), GIB)
    found = in_group(tmp_path, "/")
    (tmp_path / "mount/memory.current").unlink()

    assert found.memory() is None


async def test_the_memory_is_watched(tmp_path: Path) -> None:
    """Again and again, and nothing of it keeps the event loop waiting."""
    looks: list[Memory | None] = []

    class Noted(Pressure):
        def memory(self, found: Memory | None) -> None:
            looks.append(found)

    group(tmp_path / "mount", "100", 50)
    watching = asyncio.create_task(
        watch(Noted(), every=0.001, group=lambda: in_group(tmp_path, "/"))
    )
    await eventually(lambda: len(looks) >= 3, "it looked more than once")
    (tmp_path / "mount/memory.current").write_text("90")
    await eventually(lambda: looks[-1] == Memory(90, 100), "the change was seen")
    watching.cancel()
    await asyncio.wait([watching])

    assert looks[0] == Memory(50, 100)


async def test_without_a_limit_nobody_watches(tmp_path: Path) -> None:
    """The watch ends by itself."""
    await asyncio.wait_for(watch(Pressure(), group=lambda: in_group(tmp_path, "/")), 5)

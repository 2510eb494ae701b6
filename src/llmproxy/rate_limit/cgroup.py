"""The memory limit of the control group that we are in (cgroup v2), and what is used of it.

Inside a container the group is usually the root of what can be seen; on a host the limit may
be set on any group above ours. The nearest to its limit counts. Files that the kernel has in
memory and can drop at once are no use of memory: a group that reads much is always full of them.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmproxy.rate_limit.pressure import Memory, Pressure

MOUNT = Path("/sys/fs/cgroup")
OURS = Path("/proc/self/cgroup")
EVERY = 1.0  # seconds between two looks
UNIFIED = "0::"  # how the line of version 2 begins


class ControlGroup:
    """The groups around this process that have a memory limit."""

    def __init__(self, mount: Path = MOUNT, ours: Path = OURS) -> None:
        self.limited = [group for group in _groups(mount, ours) if _limit(group) is not None]

    def memory(self) -> Memory | None:
        """Return the use of the group that is nearest to its limit; None without any."""
        found = [use for group in self.limited if (use := _use(group)) is not None]
        return max(found, key=lambda use: use.used / use.limit, default=None)


async def watch(
    pressure: Pressure, *, every: float = EVERY, group: Callable[[], ControlGroup] = ControlGroup
) -> None:
    """Tell the pressure of the memory for ever; return at once where there is no limit.

    The files are read in a thread: the kernel may take milliseconds to add them up.
    """
    own = await asyncio.to_thread(group)
    while own.limited:
        pressure.memory(await asyncio.to_thread(own.memory))
        await asyncio.sleep(every)


def _groups(mount: Path, ours: Path) -> list[Path]:
    path = "/"
    with suppress(OSError):
        for line in ours.read_text().splitlines():
            if line.startswith(UNIFIED):
                path = line.removeprefix(UNIFIED)
    # In a namespace of its own a group outside of it is written `/../..`.
    parts = [part for part in path.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _use(group: Path) -> Memory | None:
    limit = _limit(group)
    try:
        used = int((group / "memory.current").read_text())
        files = _droppable((group / "memory.stat").read_text())
    except (OSError, ValueError):
        return None
    return Memory(max(0, used - files), limit) if limit is not None else None


def _limit(group: Path) -> int | None:
    try:
        limit = int((group / "memory.max").read_text())  # `max` is no number and no limit
    except (OSError, ValueError):
        return None
    return limit or None


def _droppable(stat: str) -> int:
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0

"""Of many who want the same thing at the same time, one fetches it for all."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Runs one piece of work per key. Whoever leaves early does not end it for the others."""

    def __init__(self) -> None:
        self._flying: dict[K, asyncio.Task[V]] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._flying)

    def launch(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> asyncio.Task[V]:
        """Start the work, or return the one that is under way."""
        task = self._flying.get(key)
        if task is None:
            task = self._flying[key] = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return what the work returns, or raise what it raises."""
        return await asyncio.shield(self.launch(key, work))

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _landed(self, key: K, task: "asyncio.Task[V]") -> None:
        del self._flying[key]
        # Everybody who waited may have left; asyncio would complain of an error nobody took.
        if not task.cancelled():
            task.exception()

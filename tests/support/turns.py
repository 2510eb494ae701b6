"""How many turns of the event loop others have meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Counts them."""

    count = 0

    async def go_on(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


@asynccontextmanager
async def counted_turns() -> AsyncIterator[Turns]:
    """Count the turns that the event loop has in the block."""
    turns = Turns()
    task = asyncio.create_task(turns.go_on())
    await asyncio.sleep(0)
    try:
        yield turns
    finally:
        task.cancel()

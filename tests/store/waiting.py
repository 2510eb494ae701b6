"""Waiting for a store to be as a test wants it."""

import asyncio
from collections.abc import Awaitable, Callable

from llmproxy.store.interface import Meter, Store, Unavailable

PATIENCE = 20.0  # seconds
POLL = 0.005  # seconds


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds; a store that cannot be asked now holds nothing."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                if await condition():
                    return
            except Unavailable:
                pass
            await asyncio.sleep(POLL)


async def until_left(store: Store, meter: Meter, left: float) -> None:
    """Wait until so much of a meter is left."""

    async def there() -> bool:
        return (await store.read([meter]))[0].left == left

    await until(there)


async def until_available(store: Store) -> None:
    """Wait until it answers."""

    async def there() -> bool:
        return store.available

    await until(there)

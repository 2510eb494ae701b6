"""Keys that were issued, and a proxy that would ask nobody for one.

Whether callers are asked for keys goes by whether there are any, unless LLMPROXY_AUTH says it.
Those that are configured the settings know; those that were issued only the store does.
"""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmproxy.settings import Settings
    from llmproxy.store.interface import Store

WITHIN = 2.0  # seconds that the store may take

OPEN = (
    "keys were issued in LLMPROXY_STORE, and nobody would be asked for one: LLMPROXY_AUTH is not"
    " set. Set LLMPROXY_AUTH=keys, or LLMPROXY_AUTH=off to let everybody in"
)
PERHAPS_OPEN = (
    "nobody is asked for a key, and whether keys were issued is not known: LLMPROXY_STORE does not"
    " answer. Set LLMPROXY_AUTH=keys, or LLMPROXY_AUTH=off to let everybody in"
)


def stands_open(settings: "Settings") -> bool | None:
    """Tell whether there are keys that nobody has decided to ask for; None = cannot be known."""
    if settings.auth != "off" or settings.auth_was_said or not settings.store.shared:
        return False

    from llmproxy.store.interface import Unavailable
    from llmproxy.store.opening import open_store

    store = open_store(settings.store.url, patience=WITHIN)
    try:
        return asyncio.run(_any_issued(store))
    except (Unavailable, TimeoutError):
        return None


async def _any_issued(store: "Store") -> bool:
    from llmproxy.auth.issued import IssuedKeys

    try:
        async with asyncio.timeout(WITHIN):
            return await IssuedKeys(store).any_works()
    finally:
        await store.aclose()

"""Look again and again at something that may change, for as long as somebody uses it.

Rule 1: whoever asks within `every` seconds of the last look is not held up, and nothing is done.
Rule 2: later, a look begins in the background and the one who asked is still not held up.
Rule 3: after `bound` seconds, which is after a pause, it waits for the look. So what is believed
        is never older than that, and an idle process asks nobody anything.
"""

import math
from collections.abc import Callable, Coroutine
from typing import Any

from llmproxy import clock
from llmproxy.auth.single_flight import SingleFlight

EVERY = 1.0  # seconds
BOUND = 4.0  # seconds; a revoked key is refused within 5


class Freshness:
    """Says when to look. The look itself deals with its own failures."""

    def __init__(
        self,
        look: Callable[[], Coroutine[Any, Any, None]],
        *,
        every: float = EVERY,
        bound: float = BOUND,
    ) -> None:
        self._look = look
        self._every = every
        self._bound = bound
        self._looked = -math.inf
        self._flight: SingleFlight[str, None] = SingleFlight()

    @property
    def fresh(self) -> bool:
        """Whether `check` has nothing to do."""
        return clock.now() - self._looked < self._every

    async def check(self) -> None:
        """Return when what is known is fresh enough."""
        age = clock.now() - self._looked
        if age < self._every:
            return
        if age < self._bound:
            self._flight.launch("look", self._look_now)
        else:
            await self._flight.run("look", self._look_now)

    async def look(self) -> None:
        """Look now, whenever the last look was."""
        await self._flight.run("look", self._look_now)

    async def aclose(self) -> None:
        """End a look that is under way."""
        await self._flight.aclose()

    async def _look_now(self) -> None:
        began = clock.now()
        try:
            await self._look()
        finally:
            # What changed while we looked may have been missed: the age counts from before.
            self._looked = began

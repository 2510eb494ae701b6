"""One task that carries everything to a store, so that no caller ever touches a connection.

Rule 1: what is asked in one tick of the loop goes out together; what is asked while that is
        under way goes out next.
Rule 2: a caller waits for `patience` at most. Then everybody who waits is told that the store
        cannot be asked, newcomers are told at once, and the task alone goes on trying: that is
        the whole breaker. It closes when the store has answered in time again.
Rule 3: a caller may leave at any time. What was taken for nobody is given back.
Rule 4: settling is not given up because of an outage. A batch whose outcome is not known is
        carried again, without what nobody waits for any more; the carrier sees to it that
        nothing is done twice.
"""

import asyncio
import logging
import random
from collections import Counter, deque
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from llmproxy.store.interface import Grant, Unavailable
from llmproxy.store.operations import (
    Nothing,
    Operation,
    R,
    Result,
    Settle,
    Take,
    given_back,
)
from llmproxy.store.watch import Watch

LEASE = 10.0  # seconds after which what a silent process holds comes back
TOGETHER = 256  # operations in one batch: some 10 ms of a Redis that does nothing else meanwhile
KEPT = 10_000  # settlements that are kept for a store that is away
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # seconds between two tries
FLUSH = 2.0  # seconds that the end may take

log = logging.getLogger("llmproxy")


class Refused(Unavailable):
    """The store has answered, and it would say the same the next time."""


class Carrier(Protocol):
    """Who knows how to talk to one kind of store."""

    async def carry(self, batch: list[Operation[Any]], *, again: bool) -> list[Result]:
        """Do all of it and return a result for each; also renews the lease.

        `again`: the batch before was this one, and what became of it is not known. If it was done,
        nothing is done now. Nobody waits for it: only what it took has to be told, and taking,
        where it was not done, is not done now either.
        """

    async def aclose(self) -> None:
        """Give back what is held and let go of everything."""


class _Lost:
    """What a caller finds in the place of a result."""


_LOST: Final = _Lost()
_Answer = asyncio.Future[Any]  # a result, or `_LOST`


class _Waiting(NamedTuple):
    operation: Operation[Any]
    answer: _Answer | None  # None: nobody waits for it
    since: float


class Dispatcher:
    """The queue before a carrier."""

    def __init__(
        self, carrier: Carrier, *, patience: float, lease: float, events: Counter[str]
    ) -> None:
        self.available = True
        self._carrier = carrier
        self._renew_every = lease / 3
        self._patience = patience
        self._events = events
        self._queue: deque[_Waiting] = deque()
        self._under_way: list[_Waiting] = []
        self._again = False  # whether the outcome of what is under way is not known
        self._pause = 0.0  # seconds before the next try; 0 = the last one was answered in time
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._closing = False

    def start(self) -> None:
        """Say that we are here, and go on saying so."""
        if self._task is None and not self._closing:
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run())
            self._renew()

    async def ask(self, operation: Operation[R]) -> R:
        """Have something done and return what came of it."""
        if not self.available or self._closing:
            raise Unavailable
        self.start()
        answer: _Answer = self._loop.create_future()
        self._add(operation, answer)
        try:
            result: R | _Lost = await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled():  # it was on its way to us
                self._undo(operation, answer.result())
            raise
        if isinstance(result, _Lost):
            raise Unavailable
        return result

    def tell(self, settlement: Settle) -> None:
        """Have something settled, sooner or later."""
        self.start()
        if self._task is None or self._task.done():
            self._events["lost"] += 1
            return
        if not self.available and len(self._queue) >= KEPT:
            self._queue.popleft()
            self._events["lost"] += 1
        self._add(settlement, None)

    async def aclose(self) -> None:
        """Carry what is still there, within reason, and end."""
        self._closing = True
        self._news.set()
        if self._renewal is not None:
            self._renewal.cancel()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=FLUSH)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._let_down()
        self._events["lost"] += len(self._queue) + _settlements(self._under_way)
        self._queue.clear()
        self._under_way.clear()
        await self._carrier.aclose()

    def _add(self, operation: Operation[Any], answer: _Answer | None) -> None:
        self._queue.append(_Waiting(operation, answer, self._loop.time()))
        self._news.set()

    def _renew(self) -> None:
        self._renewal = self._loop.call_later(self._renew_every, self._renew)
        self._news.set()

    async def _run(self) -> None:
        while True:
            if self._pause:
                if self._closing:
                    return
                await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
            elif not self._queue and not self._again and self.available:
                if self._closing:
                    return
                await self._news.wait()
            self._news.clear()
            await self._exchange()

    async def _exchange(self) -> None:
        if not self._again:
            # After trouble an empty batch goes first, to see whether it is over.
            count = 0 if self._pause else min(TOGETHER, len(self._queue))
            self._under_way = [self._queue.popleft() for _ in range(count)]
        waited = (each.since for each in self._under_way if each.answer is not None)
        since = next(waited, None) or self._loop.time()
        watch = Watch(self._loop, since + self._patience, self._late)
        try:
            batch = [each.operation for each in self._under_way]
            results = await self._carrier.carry(batch, again=self._again)
        except Unavailable as exc:
            reason = str(exc) or type(exc.__cause__ or exc).__name__
            self._failed(reason, drop=isinstance(exc, Refused))
        except Exception as exc:  # a fault of ours, which must not end the only task there is
            self._failed(type(exc).__name__, drop=True)
        else:
            self._answered(results, in_time=not watch.rang)
        finally:
            watch.stop()

    def _answered(self, results: list[Result], *, in_time: bool) -> None:
        under_way, self._under_way, self._again = self._under_way, [], False
        for (operation, answer, _), result in zip(under_way, results, strict=True):
            if answer is not None and not answer.done():
                answer.set_result(result)
            else:
                self._undo(operation, result)
        if not in_time:
            self._pause_longer()
            return
        self._pause = 0.0
        if not self.available and not self._queue:  # what was kept goes before what is new
            self.available = True
            log.warning("the store answers again")

    def _failed(self, reason: str, *, drop: bool) -> None:
        self._unavailable(reason)
        self._pause_longer()
        if drop:
            self._events["lost"] += _settlements(self._under_way)
            self._under_way = []
        self._again = bool(self._under_way)
        self._under_way = [
            each._replace(
                operation=each.operation if type(each.operation) in (Settle, Take) else Nothing(),
                answer=None,
            )
            for each in self._under_way
        ]

    def _late(self) -> None:
        self._unavailable("too slow")

    def _unavailable(self, reason: str) -> None:
        if self.available:
            self.available = False
            self._events["unavailable"] += 1
            log.warning("the store cannot be asked: %s", reason)
        self._let_down()

    def _let_down(self) -> None:
        """Tell everybody who waits; what is to be settled stays."""
        for _, answer, _ in (*self._under_way, *self._queue):
            if answer is not None and not answer.done():
                answer.set_result(_LOST)
        self._queue = deque(each for each in self._queue if each.answer is None)

    def _pause_longer(self) -> None:
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)

    def _undo(self, operation: Operation[Any], result: Result) -> None:
        if isinstance(operation, Take) and isinstance(result, Grant) and result.granted:
            self.tell(given_back(operation.wanted, result))


def _settlements(waiting: list[_Waiting]) -> int:
    return sum(isinstance(each.operation, Settle) for each in waiting)

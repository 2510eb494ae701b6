"""What becomes of limits and budgets while the store cannot be asked.

The store here is the real one of a process, behind a door that can be shut.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmproxy.errors import QuotaSpent, RateLimited, StoreUnavailable
from llmproxy.protocol.endpoints import CHAT
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.limits import limits
from llmproxy.rate_limit.reservation import Reservation
from llmproxy.records import InferenceRequest, Principal, Usage
from llmproxy.store.interface import Grant, Meter, Reading, Store, Unavailable
from llmproxy.store.memory import MemoryStore
from llmproxy.store.sqlite import SqliteStore
from tests.support.calls import eventually

ANNA = Principal(id="key_1", name="anna")
ASKED = InferenceRequest(model="llama", max_tokens=100, prompt_bytes=400)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again sooner than in production."""
    monkeypatch.setattr("llmproxy.rate_limit.arrears.RETRY", 0.02)


class Far:
    """A store at the other end of a line that can be cut."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or MemoryStore()
        self.away = False
        self.settled = 0

    @property
    def available(self) -> bool:
        return not self.away

    async def take(self, wanted: Sequence[tuple[Meter, float]]) -> Grant:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable
        return await self.store.take(wanted)

    async def settle(self, taken: Sequence[tuple[Meter, float, float]], owner: str) -> None:
        assert not self.away, "it would be told when it is back, as if no time had passed"
        await asyncio.sleep(0)
        self.settled += 1
        await self.store.settle(taken, owner)

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        return await self.store.read(meters)


@asynccontextmanager
async def limiting(
    far: Far, text: str = "", budget: str = "", **options: Any
) -> AsyncIterator[Limiter]:
    made = Limiter(far, MemoryStore(), limits=limits(text), budgets=budgets(budget), **options)
    try:
        yield made
    finally:
        await made.aclose()


async def reserve(made: Limiter, asked: InferenceRequest = ASKED) -> Reservation:
    return await made.reserve(ANNA, None, CHAT, asked)


async def admitted(made: Limiter, times: int) -> int:
    count = 0
    for _ in range(times):
        try:
            await reserve(made)
        except (RateLimited, QuotaSpent):
            continue
        count += 1
    return count


async def left(far: Far, reservation: Reservation) -> list[float]:
    return [each.left for each in await far.read([it.meter for it in reservation.plan.lines])]


@pytest.mark.parametrize("text", ["20 req/day", "20 concurrent", "4000 tok/day"])
async def test_each_worker_keeps_its_share(text: str) -> None:
    """A quarter each of four workers: never unlimited, and nobody is turned away for nothing."""
    far = Far()
    far.away = True
    async with limiting(far, text, workers=4) as made:
        assert await admitted(made, 100) == 5


async def test_a_share_is_never_nothing() -> None:
    """Of one at a time, each worker lets one in; what is larger than the share waits for it."""
    far = Far()
    far.away = True
    async with limiting(far, "1 concurrent, 1000 tok/day", workers=8) as made:
        first = await reserve(made)
        assert await admitted(made, 5) == 0
        await made.settle(first, Usage(prompt=100, completion=100))
        assert await admitted(made, 5) == 0  # 200 tokens of a share of 125 are owed


@pytest.mark.parametrize(("refused", "owed"), [(True, 0), (False, 1)])
async def test_who_was_refused_after_all_owes_no_request(refused: bool, owed: int) -> None:
    """To the store that was away when the request was let in."""
    far = Far()
    far.away = True
    async with limiting(far, "20 req/day") as made:
        held = await reserve(made)
        if refused:
            held.take_back()
        await made.settle(held, Usage())
        far.away = False
        if owed:
            await eventually(lambda: far.settled == 1, "what is owed was told")

    assert await left(far, held) == [pytest.approx(20 - owed, abs=0.1)]


async def test_a_hard_budget_closes_the_door() -> None:
    """Nobody spends money that nobody can count; unlimited is never the answer."""
    far = Far()
    far.away = True
    async with limiting(far, "5 req/day", "1000 tok/day") as made:
        with pytest.raises(StoreUnavailable) as refused:
            await reserve(made)

    assert (b"retry-after", b"5") in refused.value.headers


async def test_a_hard_budget_can_be_kept_softly() -> None:
    """Then each worker spends its share of it, and not more."""
    far = Far()
    far.away = True
    async with limiting(far, "", "4000 tok/day", workers=2, store_down="soft") as made:
        count = 0
        with pytest.raises(QuotaSpent):
            while True:
                await made.settle(await reserve(made), Usage(prompt=100, completion=100))
                count += 1

    assert count == 8  # 8 x 200 of 2000, and the ninth could take 500


async def test_a_soft_budget_lets_everybody_in() -> None:
    """It never refuses, and what was spent is written down when the store is back."""
    far = Far()
    async with limiting(far, "", "soft:1000 tok/day", workers=4) as made:
        far.away = True
        reservation = await reserve(made)
        await made.settle(reservation, Usage(prompt=100, completion=60))
        far.away = False
        await eventually(lambda: far.settled > 0, "the settling of what was kept")

    assert await left(far, reservation) == pytest.approx([840])


async def test_what_was_held_before_is_given_back_after() -> None:
    """A permit that could not be given back while the store was away is not lost."""
    far = Far()
    async with limiting(far, "2 concurrent, 1000 tok/day", "1000 tok/day") as made:
        reservations = [await reserve(made) for _ in range(2)]
        far.away = True
        for each in reservations:
            await made.settle(each, Usage(prompt=10, completion=10))
        assert await left(far, each) == pytest.approx([0, 600, 0], abs=0.1)
        far.away = False
        await eventually(lambda: far.settled > 0, "the settling of what was kept")

        assert await left(far, each) == pytest.approx([2, 960, 960], abs=0.1)
        assert not len(made._arrears)


async def test_what_was_let_in_meanwhile_is_counted_after() -> None:
    """Requests, tokens and money of an outage are not forgotten."""
    far = Far()
    async with limiting(far, "100 req/day, 10000 tok/day", "soft:10000 tok/day") as made:
        far.away = True
        for _ in range(5):
            reservation = await reserve(made)
            await made.settle(reservation, Usage(prompt=50, completion=50))
        far.away = False
        await eventually(lambda: far.settled > 0, "the settling of what was kept")

    assert await left(far, reservation) == pytest.approx([95, 9500, 9500], abs=0.1)


@pytest.mark.parametrize("ended", [False, True], ids=["lease_lives", "lease_ended"])
async def test_tokens_of_who_was_cut_off_come_back_once(tmp_path: Path, ended: bool) -> None:
    """Whether others have given them back meanwhile, or it has to do it itself."""
    path = tmp_path / "store"
    far, other = Far(SqliteStore(path)), SqliteStore(path)
    async with limiting(far, "10000 tok/day") as made:
        reservation = await reserve(made)
        far.away = True
        await made.settle(reservation, Usage(prompt=10, completion=10))
        if ended:
            with sqlite3.connect(path, isolation_level=None) as db:
                db.execute("UPDATE owners SET expires = 0")
            db.close()
        (tokens,) = [line.meter for line in reservation.plan.lines]
        await other.take([(tokens, 500)])
        before = (await other.read([tokens]))[0].left
        assert before == pytest.approx(9500 if ended else 9300, abs=0.1)
        far.away = False
        await eventually(lambda: far.settled > 0, "the settling of what was kept")

        assert await left(far, reservation) == pytest.approx([9480], abs=0.1)
        await far.store.aclose()  # with nothing of it noted any more
        assert (await other.read([tokens]))[0].left == pytest.approx(9480, abs=0.1)
        await other.aclose()


async def test_what_is_left_is_settled_at_the_end() -> None:
    """A stop between two tries tries once more."""
    far = Far()
    async with limiting(far, "2 concurrent") as made:
        reservation = await reserve(made)
        far.away = True
        await made.settle(reservation, Usage())
        far.away = False

    assert await left(far, reservation) == [2]


async def test_what_is_dropped_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """To the metrics and to the log, once a minute."""
    dropped = 0

    class Counting:
        def limit_rejected(self, limit: str) -> None: ...

        def soft_budget_reached(self, budget: str) -> None: ...

        def settlements_dropped(self, count: int) -> None:
            nonlocal dropped
            dropped += count

    far = Far()
    async with limiting(far, "5 concurrent", counters=Counting()) as made:
        reservation = await reserve(made)
        made._arrears._unsettled._most = 0
        far.away = True
        await made.settle(reservation, Usage())

    assert dropped == 1
    assert [each.levelname for each in caplog.records] == ["ERROR"]


async def test_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it begins and one when it is over, however many requests there are."""
    caplog.set_level("INFO")
    far = Far()
    async with limiting(far, "50 req/day") as made:
        far.away = True
        for _ in range(5):
            await reserve(made)
        far.away = False
        for _ in range(5):
            await reserve(made)

    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]


async def test_a_running_stream_is_not_ended_by_an_outage() -> None:
    """It was let in; what it takes is settled when that can be done."""
    far = Far()
    async with limiting(far, "", "cut:1000 tok/day") as made:
        reservation = await reserve(made, InferenceRequest(model="llama", prompt_bytes=40))
        far.away = True
        await made.go_on(reservation, int(reservation.allowed) + 1)
        await made.settle(reservation, Usage(prompt=10, completion=700))
        far.away = False
        await eventually(lambda: far.settled > 0, "the settling of what was kept")

    assert await left(far, reservation) == pytest.approx([290])

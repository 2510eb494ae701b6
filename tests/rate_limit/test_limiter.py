"""Letting in, refusing, and settling, over the store that a single process has."""

import asyncio
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmproxy.errors import QuotaSpent, RateLimited
from llmproxy.headers import of_lines
from llmproxy.metering.prices import prices
from llmproxy.protocol.endpoints import CHAT, MODELS, UNDERSTOOD
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.limits import limits
from llmproxy.rate_limit.reservation import Reservation
from llmproxy.records import InferenceRequest, Principal, Usage
from llmproxy.store.interface import Reading
from llmproxy.store.memory import MemoryStore
from llmproxy.types import Header

ANNA = Principal(id="key_1", name="anna", team="blue")
BERT = Principal(id="key_2", name="bert", team="blue")
ASKED = InferenceRequest(model="llama", max_tokens=100, prompt_bytes=400)  # 100 + 100 tokens
DAY = 86_400


class Noted:
    """Counts like the metrics do."""

    def __init__(self) -> None:
        self.rejected: list[str] = []
        self.soft: list[str] = []
        self.dropped = 0

    def limit_rejected(self, limit: str) -> None:
        self.rejected.append(limit)

    def soft_budget_reached(self, budget: str) -> None:
        self.soft.append(budget)

    def settlements_dropped(self, count: int) -> None:
        self.dropped += count


class Finished:
    """An answer that came to its own end."""

    tokens_so_far = 0
    finished = True


FINISHED = Finished()


def limiter(text: str = "", budget: str = "", price: str = "", **options: Any) -> Limiter:
    store = MemoryStore()
    return Limiter(
        store,
        store,
        limits=limits(text),
        budgets=budgets(budget),
        prices=prices(price),
        at_once=store,
        **options,
    )


async def reserve(
    made: Limiter,
    principal: Principal | None = ANNA,
    asked: InferenceRequest = ASKED,
    address: str = "192.0.2.1",
) -> Reservation:
    return await made.reserve(principal, address, CHAT, asked)


async def readings(made: Limiter, reservation: Reservation) -> list[float]:
    """Return what is left of every meter of a request."""
    meters = [line.meter for line in reservation.plan.lines]
    return [reading.left for reading in await made._store.read(meters)]


def value(headers: Iterable[Header], name: bytes) -> bytes | None:
    found = [value for key, value in headers if key == name]
    assert len(found) <= 1
    return found[0] if found else None


async def admitted(made: Limiter, times: int, **options: Any) -> int:
    count = 0
    for _ in range(times):
        try:
            await reserve(made, **options)
        except (RateLimited, QuotaSpent):
            continue
        count += 1
    return count


@pytest.mark.parametrize("text", ["5 req/day", "5 concurrent", "1000 tok/day"])
async def test_exactly_so_many_are_let_in(text: str) -> None:
    """Of a burst ten times as large; tokens by what each of them reserves."""
    assert await admitted(limiter(text), 50) == 5


async def test_one_key_does_not_use_up_anothers() -> None:
    """Unless they share a team that is limited."""
    alone, together = limiter("5 req/day"), limiter("5 req/day per team")

    assert await admitted(alone, 50, principal=ANNA) == 5
    assert await admitted(alone, 50, principal=BERT) == 5
    assert await admitted(together, 50, principal=ANNA) == 5
    assert await admitted(together, 50, principal=BERT) == 0


async def test_without_keys_each_address_is_limited() -> None:
    """There is nothing else to know a caller by."""
    made = limiter("5 req/day")

    assert await admitted(made, 50, principal=None, address="192.0.2.1") == 5
    assert await admitted(made, 50, principal=None, address="192.0.2.2") == 5


async def test_without_limits_everybody_is_let_in() -> None:
    """And told nothing."""
    reservation = await reserve(limiter())

    assert reservation.head_lines == b""
    assert not reservation.amounts


async def test_the_strictest_wins_and_the_others_are_not_charged() -> None:
    """All of them or none: what one limit refuses costs nothing of another."""
    made = limiter("3 req/day, 100 req/day per team, 100000 tok/day, 50 concurrent", "1e6 tok/day")
    for _ in range(3):
        reservation = await reserve(made)
    before = await readings(made, reservation)
    for _ in range(20):
        with pytest.raises(RateLimited):
            await reserve(made)

    assert await readings(made, reservation) == pytest.approx(before, abs=0.1)


async def test_a_refusal_says_which_limit_and_when() -> None:
    """In whole seconds, in milliseconds, in words, and to the metrics."""
    noted = Noted()
    made = limiter("1 req/min, 100 req/hour", counters=noted)
    await reserve(made)

    with pytest.raises(RateLimited) as refused:
        await reserve(made)

    headers = refused.value.headers
    assert value(headers, b"retry-after") == b"60"
    assert 59_000 < int(value(headers, b"retry-after-ms") or 0) <= 60_000
    assert value(headers, b"x-ratelimit-limit-requests") == b"1"
    assert value(headers, b"x-ratelimit-remaining-requests") == b"0"
    assert value(headers, b"x-should-retry") is None
    assert "1 req/min per key" in refused.value.detail
    assert noted.rejected == ["1 req/min per key"]


async def test_what_can_never_fit_is_not_tried_again() -> None:
    """A client library that waits and asks again would do so for ever."""
    made = limiter("1000 tok/min")

    with pytest.raises(RateLimited) as refused:
        await reserve(made, asked=replace(ASKED, max_tokens=10**9))

    assert value(refused.value.headers, b"x-should-retry") == b"false"
    assert value(refused.value.headers, b"retry-after") is not None
    assert "max_tokens" in refused.value.detail
    assert await admitted(made, 50) == 5


async def test_nobody_is_refused_for_ever_by_a_guess() -> None:
    """Without `max_tokens` an answer is taken to be long; the limit may be short."""
    asked = InferenceRequest(model="llama", prompt_bytes=40)

    assert await admitted(limiter("60 tok/day"), 5, asked=asked) == 1
    assert await admitted(limiter("", "60 tok/day"), 5, asked=asked) == 1
    assert await admitted(limiter("", "0.00001 usd/day", "llama=1:1"), 5, asked=asked) == 1


@pytest.mark.parametrize("said", [True, "5", -1, 0, 2.5, None, 10**9, 2**64])
async def test_whatever_is_asked_for_counts(said: Any) -> None:
    """Nothing that can stand in a body makes an answer free."""
    made = limiter("100000 tok/day", "100000 tok/day")
    asked = replace(ASKED, max_tokens=said)

    assert await admitted(made, 1000, asked=asked) <= 1000 * 100 // 100


async def test_the_answer_tells_how_the_strictest_limit_stands() -> None:
    """Of each unit the one with least left; what is held at once has no header."""
    made = limiter("60 req/min, 3 req/day, 10000 tok/min, 500 tok/day, 8 concurrent")
    headers = of_lines((await reserve(made)).head_lines)

    assert value(headers, b"x-ratelimit-limit-requests") == b"3"
    assert value(headers, b"x-ratelimit-remaining-requests") == b"2"
    assert value(headers, b"x-ratelimit-reset-requests") == b"8h0m0s"
    assert value(headers, b"x-ratelimit-limit-tokens") == b"500"
    assert value(headers, b"x-ratelimit-remaining-tokens") == b"300"
    assert len(headers) == 6


async def test_what_was_reserved_too_much_comes_back() -> None:
    """The next one is let in by what the last one really took."""
    made = limiter("200 tok/day")
    reservation = await reserve(made)
    assert await admitted(made, 1) == 0

    await made.settle(reservation, Usage(prompt=10, completion=5))

    assert await readings(made, reservation) == pytest.approx([185], abs=0.1)


async def test_what_was_reserved_too_little_is_owed() -> None:
    """The truth counts, and the next one waits for it."""
    made = limiter("2000 tok/day")
    asked = InferenceRequest(model="llama", prompt_bytes=400)
    reservation = await reserve(made, asked=asked)

    await made.settle(reservation, Usage(prompt=100, completion=5000))

    assert await readings(made, reservation) == pytest.approx([2000 - 5100], abs=0.1)
    assert await admitted(made, 1) == 0


async def test_what_nobody_has_counted_costs_what_was_reserved() -> None:
    """Nobody gets tokens back because a model server does not say what it took."""
    made = limiter("1000 tok/day", "1000 tok/day")
    reservation = await reserve(made)

    await made.settle(reservation, None)

    assert await readings(made, reservation) == pytest.approx([800, 500], abs=0.1)


async def test_a_reservation_is_settled_once() -> None:
    """Whoever calls again changes nothing."""
    made = limiter("8 concurrent, 1000 tok/day", "1000 tok/day")
    reservation = await reserve(made)
    other = await reserve(made)
    for _ in range(3):
        await made.settle(reservation, Usage(prompt=10, completion=5))

    assert await readings(made, other) == pytest.approx([7, 785, 485], abs=0.1)


async def test_a_permit_comes_back() -> None:
    """As soon as the request is over, however it ended."""
    made = limiter("2 concurrent")
    first, _ = await reserve(made), await reserve(made)
    with pytest.raises(RateLimited) as refused:
        await reserve(made)

    await made.settle(first, Usage())

    assert value(refused.value.headers, b"retry-after") == b"1"
    assert value(refused.value.headers, b"retry-after-ms") == b"1000"
    assert await admitted(made, 5) == 1


async def test_a_list_of_models_is_a_request() -> None:
    """It takes no tokens, and a spent budget does not hide what there is."""
    made = limiter("3 req/day, 300 tok/day", "300 tok/day")
    await made.settle(await reserve(made), Usage(prompt=500, completion=100))
    assert await admitted(made, 1) == 0

    for _ in range(2):
        await made.reserve(ANNA, None, MODELS, InferenceRequest())
    with pytest.raises(RateLimited):
        await made.reserve(ANNA, None, MODELS, InferenceRequest())


async def test_money_is_reserved_and_settled_by_price() -> None:
    """In, out and cached apart, by the prices of the day."""
    made = limiter("", "1 usd/day", "llama=1000:2000:100")
    reservation = await reserve(made)
    assert await readings(made, reservation) == pytest.approx([1 - 0.4 - 0.2])

    await made.settle(reservation, Usage(prompt=100, completion=50, cached=60))

    assert await readings(made, reservation) == pytest.approx([1 - 0.04 - 0.006 - 0.1])


async def test_a_spent_budget_is_not_asked_again() -> None:
    """429, `insufficient_quota`, and word to the client library that waiting is of no use."""
    noted = Noted()
    made = limiter("100 req/min", "500 tok/day", counters=noted)
    reservation = await reserve(made)
    await made.settle(reservation, Usage(prompt=131_000, completion=100))

    with pytest.raises(QuotaSpent) as refused:
        await reserve(made)

    assert "is spent" in refused.value.detail
    assert value(refused.value.headers, b"x-should-retry") == b"false"
    assert 0 < int(value(refused.value.headers, b"retry-after") or 0) <= DAY
    assert value(refused.value.headers, b"x-ratelimit-limit-requests") == b"100"
    assert noted.rejected == ["500 tok/day per key"]


async def test_a_budget_says_when_only_this_request_is_too_much() -> None:
    """A smaller one would still be let in."""
    made = limiter("", "700 tok/day")
    await reserve(made)

    with pytest.raises(QuotaSpent, match="less left than this request may take"):
        await reserve(made)
    assert (
        await admitted(made, 1, asked=InferenceRequest(None, max_tokens=10, prompt_bytes=20)) == 1
    )


async def test_a_spent_budget_stops_what_costs_an_unknown_amount() -> None:
    """A request whose cost cannot be guessed is let in only while there is something left."""
    audio = UNDERSTOOD[b"/v1/audio/transcriptions"]
    made = limiter("", "500 tok/day")
    free = await made.reserve(ANNA, None, audio, InferenceRequest())
    await made.settle(free, Usage(prompt=300, completion=300))

    with pytest.raises(QuotaSpent):
        await made.reserve(ANNA, None, audio, InferenceRequest())


async def test_budgets_are_not_overspent_where_the_output_is_capped() -> None:
    """Whoever ends in whatever order: what is spent and what is reserved stay within."""
    made = limiter("", "5000 tok/day")
    spent = 0
    open_: list[Reservation] = []
    for number in range(200):
        try:
            open_.append(await reserve(made))
        except QuotaSpent:
            if not open_:
                break
        if number % 3 or len(open_) > 7:
            await made.settle(open_.pop(0), Usage(prompt=200, completion=100))
            spent += 300

    assert 4700 <= spent <= 5000


async def test_an_absurd_report_takes_nobodys_budget() -> None:
    """What is charged stays between nothing and what was reserved."""
    made = limiter("", "5000 tok/day")
    for report, left in [
        (Usage(prompt=10**12, completion=10**12), 4800),
        (Usage(prompt=-(10**12), completion=-5), 4800),
    ]:
        reservation = await reserve(made)
        await made.settle(reservation, report)
        assert await readings(made, reservation) == pytest.approx([left])


async def test_a_soft_budget_warns(caplog: pytest.LogCaptureFixture) -> None:
    """A header on each answer, a count of each, and one line of the log in a window."""
    noted = Noted()
    made = limiter("", "soft:300 tok/day", counters=noted)
    first = await reserve(made)
    await made.settle(first, Usage(prompt=200, completion=100))
    second = [await reserve(made) for _ in range(3)]

    assert first.head_lines == b""
    assert all(b"x-llmproxy-budget: " in each.head_lines for each in second)
    assert noted.soft == ["soft:300 tok/day per key"] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_model_without_a_price_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, and not for every name that callers invent."""
    made = limiter("", "1 usd/day", "gpt=1:1")
    for _ in range(3):
        await reserve(made)
    assert len(caplog.records) == 1

    for number in range(1000):
        await reserve(made, asked=replace(ASKED, model=f"model-{number}\n"))
    assert len(caplog.records) <= 100
    assert all("\n" not in record.getMessage() for record in caplog.records)


async def test_the_model_that_answers_is_paid_for() -> None:
    """Another one may stand behind an alias, or in a fallback chain."""
    made = limiter("", "10 usd/day", "llama=1000:1000,dear=5000:5000")
    reservation = await reserve(made)
    await made.settle(reservation, Usage(prompt=900, completion=100), model="dear")

    assert await readings(made, reservation) == [pytest.approx(5)]


async def test_what_was_learnt_is_reserved_next_time() -> None:
    """The first answers teach how long the next ones will be."""
    made = limiter("100000 tok/day")
    asked = InferenceRequest(model="llama", prompt_bytes=400)
    for _ in range(30):
        reservation = await reserve(made, asked=asked)
        await made.settle(reservation, Usage(prompt=100, completion=30), FINISHED)

    assert (await reserve(made, asked=asked)).estimate.output < 60


async def test_nothing_is_learnt_from_answers_that_the_caller_has_limited() -> None:
    """They say how long they were allowed to be, not how long they would have been."""
    made = limiter("100000 tok/day")
    short = InferenceRequest(model="llama", prompt_bytes=400, max_tokens=5)
    for _ in range(30):
        await made.settle(
            await reserve(made, asked=short), Usage(prompt=100, completion=5), FINISHED
        )

    assert (await reserve(made, asked=replace(short, max_tokens=None))).estimate.output == 512


async def test_a_running_stream_asks_for_more() -> None:
    """In steps; what it has reserved beyond its estimate is settled with the rest."""
    made = limiter("", "cut:5000 tok/day")
    asked = InferenceRequest(model="llama", prompt_bytes=40)
    reservation = await reserve(made, asked=asked)
    counted = int(reservation.allowed)
    for _ in range(3):
        counted = int(reservation.allowed) + 1
        await made.go_on(reservation, counted)
        assert reservation.allowed >= counted
    assert await readings(made, reservation) == pytest.approx([5000 - 40 - 512 - 3 * 256])

    await made.settle(reservation, Usage(prompt=10, completion=counted))

    assert await readings(made, reservation) == pytest.approx([5000 - 10 - counted])


@pytest.mark.parametrize(
    ("budget", "price"), [("cut:1000 tok/day", ""), ("cut:1 usd/day", "llama=0:1000")]
)
async def test_a_running_stream_ends_with_its_budget(budget: str, price: str) -> None:
    """At most one step too late, and the rest is charged as it was."""
    noted = Noted()
    made = limiter("", budget, price, counters=noted)
    reservation = await reserve(made, asked=InferenceRequest(model="llama", prompt_bytes=40))
    counted = 0
    with pytest.raises(QuotaSpent, match="while this answer was written"):
        while True:
            counted += 1
            if counted > reservation.allowed:
                await made.go_on(reservation, counted)

    assert 512 < counted <= 1000
    assert noted.rejected == [f"{budget} per key"]
    await made.settle(reservation, Usage(prompt=0, completion=counted))
    assert await readings(made, reservation) == pytest.approx(
        [1000 - counted] if not price else [1 - counted / 1000]
    )


@pytest.mark.parametrize(
    ("budget", "price", "most"),
    [
        ("cut:60 tok/day", "", 60 - 10),
        ("cut:60 tok/day, cut:1 usd", "llama=1:1000", 60 - 10),
        ("cut:0.06 usd/day", "llama=1000:1000", 60 - 10),
        ("cut:0.06 usd/day", "llama=1000:10", 5000),
        ("cut:0.06 usd/day", "llama=1000:0", math.inf),
    ],
)
async def test_a_stream_has_no_more_of_a_budget_than_there_is(
    budget: str, price: str, most: float
) -> None:
    """A budget below the guess of an answer's length is reserved whole, and ends the stream too."""
    made = limiter("", budget, price)
    reservation = await reserve(made, asked=InferenceRequest(model="llama", prompt_bytes=40))
    counted = 0
    with suppress(QuotaSpent):
        while counted < 5000:
            counted += 1
            if counted > reservation.allowed:
                await made.go_on(reservation, counted)

    assert counted <= most + 1
    assert counted >= min(most, 512)


async def test_nothing_is_formatted_or_begun_for_a_request_without_limits() -> None:
    """No task, and no step of the loop: the whole of it happens at once."""
    made = limiter("5 req/day, 1000 tok/day, 5 concurrent", "10000 tok/day")
    before = asyncio.all_tasks()
    reserving = reserve(made)
    with pytest.raises(StopIteration) as done:
        reserving.send(None)
    settling = made.settle(done.value.value, Usage(1, 1))
    with pytest.raises(StopIteration):
        settling.send(None)

    assert asyncio.all_tasks() == before


ENDINGS = st.one_of(
    st.none(),
    st.builds(Usage, st.integers(-5, 500), st.integers(-5, 500)),
    st.just(Usage(prompt=10**12, completion=10**12)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.sampled_from([ANNA, BERT, None]), st.integers(1, 300)),
        st.tuples(st.just("end"), st.integers(0, 30), ENDINGS),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_order_of_events_lets_in_more_than_allowed(steps: Any) -> None:
    """What is held never exceeds its limit, what was let in never its own; refusals cost nothing.

    And when everything has ended, everything is back where it was, less what was spent.
    """
    asyncio.run(live_through(steps))


async def live_through(steps: Any) -> None:
    made = limiter(
        "4 concurrent, 12 req/day per team, 3 concurrent per ip", "3000 tok/day per team"
    )
    running: list[Reservation] = []
    let_in = {"blue": 0, "ip": 0}
    spent = {"blue": 0.0, "ip": 0.0}
    for kind, first, second in steps:
        if kind == "begin":
            group = "ip" if first is None else "blue"
            before = await standing_of(made)
            try:
                running.append(
                    await reserve(made, principal=first, asked=replace(ASKED, max_tokens=second))
                )
            except (RateLimited, QuotaSpent):
                assert await standing_of(made) == pytest.approx(before, abs=0.1)
            else:
                let_in[group] += 1
        elif running:
            reservation = running.pop(first % len(running))
            amount = reservation.amounts[-1][1]
            await made.settle(reservation, second)
            charged = amount if second is None else reservation.estimate.believed(second).total
            assert 0 <= charged <= max(amount, 1000)
            spent["ip" if reservation.plan.principal is None else "blue"] += charged
        assert let_in["blue"] <= 12
        assert let_in["ip"] <= 12
        for principal in (ANNA, BERT, None):
            mine = [each for each in running if each.plan.principal is principal]
            assert len(mine) <= 4
        assert len(running) <= 3
    for reservation in running:
        await made.settle(reservation, Usage())

    probe = (await standing_of(made), spent)
    assert probe[0][2] == 3
    assert probe[0][3] == pytest.approx(3000 - spent["blue"])


async def standing_of(made: Limiter) -> list[float]:
    meters = [line.meter for line in made._terms.plans.find(ANNA, "192.0.2.1", "llama")[0].lines]
    found: tuple[Reading, ...] = await made._store.read(meters)
    return [reading.left for reading in found]

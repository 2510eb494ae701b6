"""The layer that reserves before and settles after."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmproxy.context import RequestContext, get_context
from llmproxy.errors import (
    ClientGone,
    DeadlineTooShort,
    InvalidRequest,
    ModelNotFound,
    NoUpstream,
    Overloaded,
    QuotaSpent,
    RateLimited,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from llmproxy.headers import of_lines
from llmproxy.middleware.errors import ErrorsMiddleware
from llmproxy.middleware.rate_limit import RateLimitMiddleware
from llmproxy.middleware.usage import UsageMiddleware
from llmproxy.protocol.endpoints import MODELS
from llmproxy.protocol.inference import read_inference
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.limiter import ChargeCancelled, Limiter
from llmproxy.rate_limit.limits import limits
from llmproxy.records import Ending, InferenceRequest, Principal, Usage
from llmproxy.store.memory import MemoryStore
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send
from tests.support.asgi import Exchange, cancel_in_flight, drive
from tests.support.builders import make_context

ANNA = Principal(id="key_1", name="anna")
ASKED = InferenceRequest(model="llama", stream=True, max_tokens=100, prompt_bytes=400)
HEAD: Message = {"type": "http.response.start", "status": 200, "headers": []}
BUDGET = "10000 tok/day"


class Counted:
    """Stands for the tap: so many tokens of output were seen, this is what was reported."""

    def __init__(self, tokens: int = 0, reported: Usage | None = None) -> None:
        self.tokens_so_far = tokens
        self.finished = reported is not None
        self.reported = reported

    def usage(self, policy: str = "counted") -> Usage | None:
        if self.reported is not None:
            return self.reported
        if policy == "counted":
            return Usage(prompt=100, completion=self.tokens_so_far, estimated=True)
        return None


class SlowStore(MemoryStore):
    """The same, but it lets others run, as every store does that is asked over a socket."""

    async def take(self, wanted: Any) -> Any:
        await asyncio.sleep(0)
        return await super().take(wanted)

    async def settle(self, taken: Any, owner: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await super().settle(taken, owner)


def limiter(
    text: str = "8 concurrent",
    budget: str = BUDGET,
    *,
    slow: bool = False,
    charge_cancelled: ChargeCancelled = "counted",
) -> Limiter:
    store = SlowStore() if slow else MemoryStore()
    return Limiter(
        store,
        store,
        limits=limits(text),
        budgets=budgets(budget),
        charge_cancelled=charge_cancelled,
        at_once=None if slow else store,
    )


async def left(made: Limiter) -> list[float]:
    """Return what is left of every meter."""
    plan, _ = made._terms.plans.find(ANNA, None, "llama")
    return [each.left for each in await made._store.read([line.meter for line in plan.lines])]


def context(**changed: Any) -> RequestContext:
    return make_context(**{"principal": ANNA, "inference": ASKED, **changed})


def outside(app: ASGIApp) -> ASGIApp:
    """Do what the outermost layer does: note what was begun, add what the limits are, settle."""

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        ctx = get_context(scope)

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                ctx.status = message["status"]
                message = {**message, "headers": [*message["headers"], *of_lines(ctx.limit_lines)]}
            await send(message)

        left = False
        try:
            await app(scope, receive, send_noted)
        except (asyncio.CancelledError, ClientGone):
            left = True
            raise
        finally:
            if ctx.settle is not None:
                ctx.settle(ctx, ctx.tap.usage() if ctx.tap is not None else None, left)

    return noting


async def through(made: Limiter, app: ASGIApp, **options: Any) -> Exchange:
    ctx = options.pop("ctx", None) or context()
    return await drive(outside(RateLimitMiddleware(app, limiter=made)), ctx=ctx, **options)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send(HEAD)
    await send({"type": "http.response.body", "body": b"x", "more_body": False})


both_stores = pytest.mark.parametrize("slow", [False, True], ids=["at once", "over a socket"])


@both_stores
async def test_an_answer_tells_of_the_limits(slow: bool) -> None:
    """In the head, before anything is known of what the answer takes."""
    seen = await through(limiter("60 req/min, 5000 tok/min", slow=slow), answer)

    assert seen.header(b"x-ratelimit-limit-requests") == b"60"
    assert seen.header(b"x-ratelimit-remaining-requests") == b"59"
    assert seen.header(b"x-ratelimit-remaining-tokens") == b"4800"


@both_stores
async def test_a_refused_request_never_reaches_the_app(slow: bool) -> None:
    """A limit costs the model server nothing, and holds nothing."""
    reached = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal reached
        reached += 1
        await answer(scope, receive, send)

    made = limiter("1 req/day, 8 concurrent", slow=slow)
    await through(made, app)
    refused = await through(made, app)

    assert isinstance(refused.raised, RateLimited)
    assert reached == 1
    assert (await left(made))[1] == 8


@both_stores
async def test_what_was_reported_is_charged(slow: bool) -> None:
    """The truth takes the place of the reservation."""
    made = limiter(slow=slow)
    await through(made, answer, ctx=context(tap=Counted(3, Usage(70, 30))))

    assert await left(made) == [8, 9900]


async def test_without_a_count_the_reservation_is_charged() -> None:
    """Nobody gets tokens back because nobody looked."""
    made = limiter()
    await through(made, answer)

    assert await left(made) == [8, 9500]


@both_stores
async def test_what_failed_before_it_began_costs_nothing(slow: bool) -> None:
    """A model server that cannot be reached is not the caller's fault."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        get_context(scope).attempts += 1
        raise UpstreamBroken("gone")

    made = limiter("8 concurrent", slow=slow)
    seen = await through(made, app, ctx=context(tap=Counted()))

    assert isinstance(seen.raised, UpstreamBroken)
    assert await left(made) == [8, 10_000]


async def test_what_the_model_server_refused_costs_nothing() -> None:
    """Its own error is passed on, and it has done no work for it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**HEAD, "status": 400})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    made = limiter()
    await through(made, app, ctx=context(tap=Counted()))

    assert await left(made) == [8, 10_000]


@both_stores
async def test_what_broke_half_way_is_charged_as_far_as_it_went(slow: bool) -> None:
    """The tokens were written, whatever became of the rest."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise UpstreamBroken("half way")

    made = limiter(slow=slow, charge_cancelled="none")  # which is for those who leave
    await through(made, app, ctx=context(tap=Counted(40)))

    assert await left(made) == [8, 9860]


@asynccontextmanager
async def left_half_way(made: Limiter, ctx: RequestContext, begun: bool) -> AsyncIterator[None]:
    """Have a request cancelled, as it is when its client hangs up."""
    started = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        get_context(scope).attempts += 1
        if begun:
            await send(HEAD)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        started.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(through(made, app, ctx=ctx))
    await cancel_in_flight(request, started)
    assert request.cancelled()
    yield


@both_stores
@pytest.mark.parametrize(
    ("policy", "begun", "charged"),
    [
        ("counted", True, 140), ("reported", True, 0), ("none", True, 0),
        ("counted", False, 100), ("reported", False, 0), ("none", False, 0),
    ],
)  # fmt: skip
async def test_a_left_stream_is_charged_as_configured(
    policy: ChargeCancelled, begun: bool, charged: int, slow: bool
) -> None:
    """What was streamed, only what was reported, or nothing; and its permit comes back."""
    made, ctx = limiter(slow=slow, charge_cancelled=policy), context(tap=Counted(40))
    async with left_half_way(made, ctx, begun):
        assert await left(made) == [8, 10_000 - charged]
        assert (ctx.charged.total if ctx.charged is not None else 0) == charged
        assert (ctx.charged is not None) is (begun or charged > 0)  # what the log has to tell


@both_stores
@pytest.mark.parametrize(
    ("policy", "own", "asked", "charged"),
    [("counted", True, 1, 100), ("counted", True, 0, 0), ("counted", False, 1, 0),
     ("reported", True, 1, 0), ("none", True, 1, 0)],
    ids=["over", "over_before_it_was_asked", "our_own_clock", "reported", "none"],
)  # fmt: skip
async def test_whose_own_time_is_over_pays_like_one_who_leaves(
    policy: ChargeCancelled, own: bool, asked: int, charged: int, slow: bool
) -> None:
    """The server has read the prompt for a caller who never meant to wait for the answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        failure = UpstreamTimeout("too late")
        failure.by_caller = own
        raise failure

    made = limiter(slow=slow, charge_cancelled=policy)
    ctx = context(tap=Counted(40), attempts=asked)
    layers = ErrorsMiddleware(RateLimitMiddleware(app, limiter=made))
    seen = await drive(outside(layers), ctx=ctx)

    assert seen.status == 504
    assert await left(made) == [8, 10_000 - charged]


@both_stores
@pytest.mark.parametrize(
    ("failure", "asked", "counts"),
    [
        (Overloaded("full", retry_after=1), 0, False),
        (Overloaded("no connection is free", retry_after=1), 1, False),
        (Overloaded("no connection is free", retry_after=1), 2, True),
        (DeadlineTooShort("too long a queue", retry_after=1), 0, False),
        (NoUpstream("nobody is there"), 0, False),
        (ModelNotFound("nobody has it"), 0, True),
        (InvalidRequest("nobody understands it"), 0, True),
        (UpstreamUnreachable("gone"), 1, True),
        (ClientGone("left the queue"), 0, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_what_is_refused_for_want_of_room_is_no_request(
    failure: Exception, asked: int, counts: bool, slow: bool
) -> None:
    """What the caller has done wrong is one, and so is whatever a server was asked."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise failure

    made = limiter("2 req/day, 1 concurrent", "", slow=slow)
    ctx = context(tap=Counted(), attempts=asked)
    layers = ErrorsMiddleware(RateLimitMiddleware(app, limiter=made))
    seen = await drive(outside(layers), ctx=ctx)

    assert (await left(made))[0] == pytest.approx(1 if counts else 2, abs=0.1)
    assert (await left(made))[1] == 1
    told = seen.header(b"x-ratelimit-remaining-requests")
    # Who has lost nothing is not told that it has.
    assert told == (b"1" if counts and not isinstance(failure, ClientGone) else None)


async def test_leaving_before_a_server_was_asked_costs_nothing() -> None:
    """Who leaves the queue has used nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientGone("left")

    made = limiter()
    await through(made, app)

    assert await left(made) == [8, 10_000]


async def test_settling_survives_a_second_cancellation() -> None:
    """A shutdown that strikes while the store is being told waits for it."""
    started, settling = asyncio.Event(), asyncio.Event()

    class Gated(SlowStore):
        async def settle(self, taken: Any, owner: str) -> None:
            settling.set()
            await super().settle(taken, owner)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    store = Gated()
    made = Limiter(store, store, limits=limits("8 concurrent"))
    request = asyncio.create_task(through(made, app))
    await started.wait()
    request.cancel()
    await settling.wait()
    request.cancel()
    await asyncio.wait([request])

    assert request.cancelled()
    assert await left(made) == [8]


@both_stores
async def test_no_permit_is_lost_to_a_cancellation(slow: bool) -> None:
    """Wherever it strikes: while reserving, in the app, between two chunks, while settling."""
    made = limiter(slow=slow)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    ended = {True: 0, False: 0}
    for number in range(300):
        request = asyncio.create_task(through(made, app, ctx=context(tap=Counted(0, Usage()))))
        for _ in range(number % 30):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        ended[request.cancelled()] += 1
        assert await left(made) == [8, 10_000]

    assert min(ended.values()) > 20


@pytest.mark.parametrize("ends", ["well", "before the head", "half way", "cancelled"])
async def test_a_place_comes_back_however_a_request_ends(ends: str) -> None:
    """Also where nothing but limits is met, which is the usual case and has a way of its own."""
    made = limiter("8 concurrent", "")
    began = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await left(made) == [7]
        if ends == "before the head":
            raise UpstreamBroken("gpu1 is away.")
        await send(HEAD)
        began.set()
        if ends == "cancelled":
            await asyncio.Event().wait()
        if ends == "half way":
            raise UpstreamBroken("gpu1 broke off.")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    request = asyncio.create_task(through(made, app, ctx=context(tap=Counted(0, Usage()))))
    if ends == "cancelled":
        await began.wait()
        request.cancel()
    await asyncio.wait([request])

    assert await left(made) == [8]


async def test_a_place_is_free_before_the_failure_is_told() -> None:
    """Who has stopped reading gets a second for the last words; others need not wait for it."""
    made = limiter("1 concurrent", "")
    free: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tail = get_context(scope).tail = StreamTail(Ending.CHAT)
        await send(HEAD)
        tail.note(b"data: {}\n\n")
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        raise UpstreamBroken("half way")

    def looking(app: ASGIApp) -> ASGIApp:
        async def looked(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_looking(message: Message) -> None:
                free.extend(await left(made))
                await send(message)

            await app(scope, receive, send_looking)

        return looked

    layers = looking(ErrorsMiddleware(RateLimitMiddleware(app, limiter=made)))
    seen = await drive(outside(layers), ctx=context(tap=Counted(0, Usage())))

    assert b"half way" in seen.body
    assert free == [0, 0, 1]


async def test_who_is_not_known_is_limited_by_address() -> None:
    """Where nobody is asked for a key."""
    made = limiter("1 req/day", "")
    for address, refused in [("192.0.2.1", False), ("192.0.2.1", True), ("192.0.2.2", False)]:
        seen = await through(made, answer, ctx=context(principal=None, client=address))
        assert isinstance(seen.raised, RateLimited) is refused


async def test_a_list_of_models_is_a_request() -> None:
    """And takes no tokens."""
    made = limiter("2 req/day, 100 tok/day")
    listing = {"endpoint": MODELS, "inference": InferenceRequest()}
    seen = [await through(made, answer, ctx=context(**listing)) for _ in range(3)]

    assert [each.raised is None for each in seen] == [True, True, False]
    assert await left(made) == [pytest.approx(0, abs=0.1), 100, 10_000]


async def test_a_stream_ends_when_its_budget_does() -> None:
    """Asked between two chunks, and only of a budget that wants it."""
    tap = Counted()
    cut, hard = limiter("", "cut:1000 tok/day"), limiter("", "1000 tok/day")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        for number in range(2000):
            tap.tokens_so_far = number
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    asked = InferenceRequest(model="llama", stream=True, prompt_bytes=40)
    ended = await through(cut, app, ctx=context(tap=tap, inference=asked))
    whole = await through(hard, app, ctx=context(tap=tap, inference=asked))

    assert isinstance(ended.raised, QuotaSpent)
    assert not ended.complete
    assert 512 < len(ended.chunks) <= 1000
    assert whole.complete


async def test_an_answer_that_is_whole_is_never_cut() -> None:
    """What has been written to the last word is handed over, whatever it was."""
    made = limiter("", "cut:1000 tok/day")
    asked = InferenceRequest(model="llama", prompt_bytes=40)
    seen = await through(made, answer, ctx=context(tap=Counted(5000), inference=asked))

    assert seen.complete


@both_stores
async def test_another_attempt_is_made_in_the_place_of_the_first(slow: bool) -> None:
    """An engine that refuses the option is asked again: nobody is refused beside himself."""
    answers = [400, 200]

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": answers.pop(0), "headers": headers})
        body = b"Unknown field: stream_options"
        await send({"type": "http.response.body", "body": body, "more_body": False})

    body = b'{"model":"llama","stream":true}'
    ctx = context(body=body, inference=read_inference(body))
    made = limiter("1 req/day, 1 concurrent", "", slow=slow)
    layer = UsageMiddleware(RateLimitMiddleware(engine, limiter=made))
    seen = await drive(outside(layer), ctx=ctx, body=body)

    assert seen.status == 200
    assert answers == []
    assert await left(made) == [pytest.approx(0, abs=0.1), 1]


async def test_chunks_take_no_detour() -> None:
    """Without such a budget the app is given the very `send` that came in, and no task is begun."""
    before = asyncio.all_tasks()
    given: list[Send] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.append(send)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    layer = RateLimitMiddleware(app, limiter=limiter("60 req/min, 5000 tok/min, 8 concurrent"))
    request = layer({"type": "http", "llmproxy.context": context(tap=Counted(1))}, receive, send)
    with pytest.raises(StopIteration):
        request.__await__().__next__()

    assert given == [send]
    assert asyncio.all_tasks() == before


async def test_without_limits_nothing_is_settled() -> None:
    """A layer that has nothing to do costs nothing."""
    seen = await through(limiter("", ""), answer)

    assert seen.complete
    assert seen.headers == []

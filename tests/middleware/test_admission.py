"""A slot for each request: taken when there is one, waited for when not, always given back."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from llmproxy.errors import DeadlineTooShort, InvalidRequest, Overloaded
from llmproxy.metrics import Metrics
from llmproxy.middleware.admission import AdmissionMiddleware
from llmproxy.middleware.shedding import SheddingMiddleware
from llmproxy.protocol.endpoints import MODELS
from llmproxy.rate_limit.pressure import Memory, Pressure
from llmproxy.rate_limit.queue import Admission
from llmproxy.records import Endpoint, Principal, Usage
from llmproxy.types import ASGIApp, Receive, Scope, Send
from tests.support.asgi import Exchange, drive
from tests.support.builders import make_context
from tests.support.calls import eventually, settle
from tests.support.clock import pass_time
from tests.support.rig import sample

HEAD = {"type": "http.response.start", "status": 200, "headers": []}
PATIENCE = 1000.0  # seconds; some tests put the clock forward
LAST = {"type": "http.response.body", "body": b"", "more_body": False}


@dataclass
class Engine:
    """An app that answers each request when the test says so."""

    order: list[str] = field(default_factory=list)
    held: dict[str, asyncio.Event] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["query_string"].decode()
        self.order.append(name)
        self.held[name] = asyncio.Event()
        await self.held[name].wait()
        await send(dict(HEAD))
        await send(dict(LAST))


@dataclass
class Counted:
    """What a tap tells at the end."""

    total: int | None

    def usage(self, policy: str) -> Usage | None:
        return Usage(completion=self.total) if self.total is not None else None


class Queue:
    """The layer in front of an engine, and everything that came through it."""

    def __init__(
        self,
        *,
        slots: int = 1,
        size: int = 10,
        timeout: float = 0,
        total: float = 0,
        engine: ASGIApp | None = None,
    ) -> None:
        self.engine = Engine()
        self.metrics = Metrics()
        self.admission = Admission(max_inflight=slots, queue_size=size, queue_timeout=timeout)
        self.layer = AdmissionMiddleware(
            engine or self.engine, admission=self.admission, metrics=self.metrics, total=total
        )
        self.tasks: dict[str, asyncio.Task[Exchange]] = {}

    async def ask(self, name: str, *, fields: dict[bytes, bytes] | None = None, **ctx: Any) -> None:
        """Let a request come, and get as far as it can at once."""
        context = make_context(**ctx)
        context.fields.update(fields or {})
        self.tasks[name] = asyncio.create_task(
            drive(self.layer, ctx=context, query=name.encode(), patience=PATIENCE)
        )
        await settle()

    async def answer(self, name: str) -> Exchange:
        """Let the engine answer."""
        await eventually(lambda: name in self.engine.held, f"{name} reached the engine")
        self.engine.held[name].set()
        seen = await self.tasks[name]
        await settle()
        return seen

    @property
    def depth(self) -> float:
        return sample(self.metrics.render(), "llmproxy_queue_depth")

    @property
    def waits(self) -> float:
        return sample(self.metrics.render(), "llmproxy_queue_seconds_count")

    @property
    def empty(self) -> bool:
        return self.admission.running == self.admission.waiting == 0


def who(name: str, **options: Any) -> Principal:
    return Principal(name, name, **options)


async def test_a_free_slot_is_taken_at_once() -> None:
    """Nothing waits, no task is made, nothing is measured; the slot comes back."""
    queue = Queue(slots=2)
    reached: list[set[asyncio.Task[Any]]] = []

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(asyncio.all_tasks())
        await send(dict(HEAD))
        await send(dict(LAST))

    queue.layer.app = engine
    before = asyncio.all_tasks()
    seen = await drive(queue.layer, ctx=make_context())

    assert seen.complete
    assert reached == [before]
    assert queue.waits == 0
    assert queue.empty


async def test_the_others_wait_for_their_turn() -> None:
    """One after the other, each as soon as the one before it has ended."""
    queue = Queue()
    for name in "abc":
        await queue.ask(name)
    depth = queue.depth
    for name in "abc":
        assert (await queue.answer(name)).complete

    assert depth == 2
    assert queue.engine.order == ["a", "b", "c"]
    assert queue.depth == 0
    assert queue.waits == 2
    assert queue.empty


@pytest.mark.parametrize("endpoint", [MODELS, Endpoint("management", management=True)])
async def test_who_only_looks_is_not_held_up(endpoint: Endpoint) -> None:
    """The list of models, and what an operator does about a full engine."""
    queue = Queue(size=0)
    await queue.ask("a")
    await queue.ask("models", endpoint=endpoint)

    assert queue.engine.order == ["a", "models"]
    assert queue.admission.running == 1
    for name in ("a", "models"):
        await queue.answer(name)


async def test_a_hang_up_in_the_queue() -> None:
    """The place is free at once, and the engine never hears of it."""
    queue = Queue(size=1)
    await queue.ask("a")
    await queue.ask("b")
    queue.tasks["b"].cancel()
    await asyncio.wait([queue.tasks["b"]])
    depth = queue.depth
    await queue.ask("c")
    await queue.answer("a")
    await queue.answer("c")

    assert queue.tasks["b"].cancelled()
    assert depth == 0
    assert queue.engine.order == ["a", "c"]
    assert queue.empty


async def test_a_hang_up_at_the_moment_of_the_turn() -> None:
    """The slot that was given and not taken goes to the next."""
    queue = Queue()
    running = queue.admission.take("somebody", 1.0, 0)
    assert running is not None
    await queue.ask("b")
    await queue.ask("c")
    queue.admission.leave(running)
    queue.tasks["b"].cancel()
    await asyncio.wait([queue.tasks["b"]])
    await queue.answer("c")

    assert queue.tasks["b"].cancelled()
    assert queue.engine.order == ["c"]
    assert queue.empty


@pytest.mark.parametrize("ending", ["error", "cancelled", "left"])
async def test_the_slot_comes_back_however_it_ends(ending: str) -> None:
    """Also when nothing was answered."""
    started = asyncio.Event()

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        if ending == "error":
            raise ValueError
        await asyncio.Event().wait()

    queue = Queue(engine=engine)
    await queue.ask("a")
    await started.wait()
    if ending != "error":
        queue.tasks["a"].cancel()
    await asyncio.wait([queue.tasks["a"]])

    assert queue.empty


async def test_the_slot_comes_back_even_if_counting_fails() -> None:
    """Our own bug may cost one answer, and no more."""

    class Broken:
        def usage(self, policy: str) -> Usage | None:
            raise ZeroDivisionError

    queue = Queue()
    await queue.ask("a", tap=Broken())
    seen = await queue.answer("a")

    assert isinstance(seen.raised, ZeroDivisionError)
    assert queue.empty


async def test_a_full_queue() -> None:
    """503 at once, with a time to come again."""
    queue = Queue(size=1)
    await queue.ask("a")
    await queue.ask("b")
    await queue.ask("c")
    seen = await queue.tasks["c"]

    assert isinstance(seen.raised, Overloaded)
    assert dict(seen.raised.headers)[b"retry-after"] == b"1"
    assert queue.waits == 0  # it has not been in the queue
    for name in "ab":
        await queue.answer(name)


async def test_who_is_displaced_is_told() -> None:
    """A flood takes the places of nobody else, and loses its own."""
    queue = Queue(size=2)
    await queue.ask("a", principal=who("flood"))
    await queue.ask("b", principal=who("flood"))
    await queue.ask("c", principal=who("flood"))
    await queue.ask("d", principal=who("quiet"))
    seen = await queue.tasks["c"]

    assert isinstance(seen.raised, Overloaded)
    assert queue.depth == 2
    for name in "abd":
        assert (await queue.answer(name)).complete
    assert queue.empty


@pytest.mark.clock
async def test_the_queue_has_a_clock() -> None:
    """Who was not called in time is told so by 503; the others wait on."""
    queue = Queue(timeout=30)
    await queue.ask("a")
    await queue.ask("b")
    await pass_time(29)
    still = not queue.tasks["b"].done()
    await pass_time(2)
    seen = await queue.tasks["b"]

    assert still
    assert isinstance(seen.raised, Overloaded)
    assert queue.depth == 0
    assert queue.waits == 1
    await queue.answer("a")
    assert queue.empty


@pytest.mark.clock
@pytest.mark.parametrize("by", ["caller", "operator"])
async def test_a_deadline_ends_the_wait(by: str) -> None:
    """504, whether the time was set in the request or for all of them."""
    queue = Queue(timeout=30, total=5 if by == "operator" else 0)
    fields = {b"x-llmproxy-timeout": b"5"} if by == "caller" else {}
    await queue.ask("a", fields=fields)
    await queue.ask("b", fields=fields)
    await pass_time(6)
    seen = await queue.tasks["b"]

    assert isinstance(seen.raised, DeadlineTooShort)
    assert queue.engine.order == ["a"]
    await queue.answer("a")


@pytest.mark.clock
async def test_a_turn_that_comes_with_the_end_of_the_wait() -> None:
    """The slot is there, so it is used and not lost."""
    queue = Queue(timeout=30)
    running = queue.admission.take("somebody", 1.0, 0)
    assert running is not None
    asyncio.get_running_loop().call_later(29.9, queue.admission.leave, running)
    await queue.ask("b")
    await pass_time(31)  # both are due in the same turn of the loop
    seen = await queue.answer("b")

    assert seen.complete
    assert queue.empty


async def test_a_deadline_that_has_passed() -> None:
    """The engine is not asked for an answer that nobody would wait for."""
    queue = Queue()
    await queue.ask("a")
    await queue.ask("b", fields={b"x-llmproxy-timeout": b"0.01"}, started_at=0.0)
    seen = await queue.tasks["b"]

    assert isinstance(seen.raised, DeadlineTooShort)
    assert queue.engine.order == ["a"]
    await queue.answer("a")


@pytest.mark.parametrize("header", [b"x-llmproxy-timeout", b"x-llmproxy-priority"])
async def test_an_option_that_makes_no_sense(header: bytes) -> None:
    """Is refused, and has taken nothing."""
    queue = Queue()
    await queue.ask("a")
    await queue.ask("b", fields={header: b"very"})
    seen = await queue.tasks["b"]
    await queue.answer("a")

    assert isinstance(seen.raised, InvalidRequest)
    assert queue.empty


@pytest.mark.parametrize(
    ("asked", "allowed", "goes"),
    [
        pytest.param(None, 0, "bc", id="as everybody"),
        pytest.param(None, 2, "cb", id="by its key"),
        pytest.param(b"1", 2, "cb", id="less than it may"),
        pytest.param(b"-1", 2, "bc", id="after everybody, by its own wish"),
        pytest.param(b"9", 0, "bc", id="more than it may"),
    ],
)
async def test_classes(asked: bytes | None, allowed: int, goes: str) -> None:
    """A key's own class, or less when it asks for less; never more."""
    queue = Queue()
    await queue.ask("a")
    await queue.ask("b", principal=who("b"))
    await queue.ask(
        "c",
        principal=who("c", priority=allowed),
        fields={b"x-llmproxy-priority": asked} if asked is not None else {},
    )
    for name in "a" + goes:
        await queue.answer(name)

    assert queue.engine.order == ["a", *goes]


async def test_without_keys_the_caller_is_an_address() -> None:
    """One address with many requests does not keep another waiting."""
    queue = Queue()
    await queue.ask("first", client="192.0.2.1")
    for name in "abc":
        await queue.ask(name, client="192.0.2.1")
    await queue.ask("other", client="192.0.2.2")
    for name in ("first", "a", "other", "b", "c"):
        await queue.answer(name)

    assert queue.engine.order[:3] in (["first", "other", "a"], ["first", "a", "other"])


async def test_tokens_and_weights_decide() -> None:
    """What the tap has counted is what a key was served."""
    queue = Queue(size=100)
    await queue.ask("first")
    for number in range(12):
        # a's requests take four times the tokens of b's, but it has twice the weight.
        await queue.ask(f"a{number}", principal=who("a", weight=2.0), tap=Counted(4000))
        await queue.ask(f"b{number}", principal=who("b"), tap=Counted(1000))
    await queue.answer("first")
    for number in range(1, 13):
        await queue.answer(queue.engine.order[number])
    order = queue.engine.order[1:13]
    for task in queue.tasks.values():
        task.cancel()
    await asyncio.wait(queue.tasks.values())

    assert 3 <= sum(name.startswith("a") for name in order) <= 5  # not 8
    assert queue.empty


async def test_hanging_up_gains_nothing() -> None:
    """Where nobody has counted, a key stays charged with what is usual for it."""
    queue = Queue(size=100)
    await queue.ask("first")
    for number in range(8):
        await queue.ask(f"a{number}", principal=who("a"), tap=Counted(None))
        await queue.ask(f"b{number}", principal=who("b"), tap=Counted(500))
    await queue.answer("first")
    for number in range(1, 9):
        name = queue.engine.order[number]
        if name.startswith("a"):
            queue.tasks[name].cancel()
            await asyncio.wait([queue.tasks[name]])
            await settle()
        else:
            await queue.answer(name)
    order = queue.engine.order[1:9]
    for task in queue.tasks.values():
        task.cancel()
    await asyncio.wait(queue.tasks.values())

    assert sum(name.startswith("a") for name in order) == 4


# Shedding


def shedding(pressure: Pressure) -> tuple[ASGIApp, Engine]:
    engine = Engine()
    return cast("ASGIApp", SheddingMiddleware(engine, pressure=pressure)), engine


SHORT: list[Callable[[Pressure], None]] = [
    lambda pressure: pressure.lag(2.0, 10.0),
    lambda pressure: pressure.memory(Memory(90, 100)),
]


@pytest.mark.parametrize("press", SHORT, ids=["late", "short of memory"])
async def test_under_pressure_new_work_is_refused(press: Callable[[Pressure], None]) -> None:
    """What runs goes on to its end; with nothing running the next is taken."""
    pressure = Pressure()
    layer, engine = shedding(pressure)
    running = asyncio.create_task(drive(layer, ctx=make_context(), query=b"a"))
    await eventually(lambda: "a" in engine.held, "a runs")
    press(pressure)
    refused = await drive(layer, ctx=make_context(), query=b"b")
    engine.held["a"].set()
    first = await running
    last = asyncio.create_task(drive(layer, ctx=make_context(), query=b"c"))
    await eventually(lambda: "c" in engine.held, "c runs")
    engine.held["c"].set()

    assert isinstance(refused.raised, Overloaded)
    assert b"retry-after" in dict(refused.raised.headers)
    assert first.complete
    assert (await last).complete
    assert pressure.running == 0


async def test_the_end_of_a_request_is_counted_however_it_comes() -> None:
    """Or the proxy would refuse for ever."""
    pressure = Pressure()
    layer, engine = shedding(pressure)
    request = asyncio.create_task(drive(layer, ctx=make_context(), query=b"a"))
    await eventually(lambda: "a" in engine.held, "a runs")
    running = pressure.running
    request.cancel()
    await asyncio.wait([request])

    assert running == 1
    assert pressure.running == 0

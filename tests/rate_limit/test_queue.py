"""Slots and the queue in front of them: no slot is lost, nobody is forgotten, nobody hoards."""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import DeadlineTooShort, Overloaded, ProxyError
from llmproxy.rate_limit.fairness import MOST_RESTING, FairQueue, Place, State
from llmproxy.rate_limit.pace import STALE
from llmproxy.rate_limit.queue import LATEST, Admission, part_of


@dataclass
class Clock:
    """Stands still unless it is moved."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Door:
    """An admission, its clock, and the order in which those who waited were called."""

    slots: int = 1
    size: int = 1000
    timeout: float = 30.0
    clock: Clock = field(default_factory=Clock)
    called: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission = Admission(
            max_inflight=self.slots,
            queue_size=self.size,
            queue_timeout=self.timeout,
            now=self.clock,
        )

    def come(
        self,
        name: str = "a",
        *,
        key: str | None = None,
        weight: float = 1.0,
        level: int = 0,
        deadline: float = math.inf,
    ) -> Place:
        """Let a request come; the first letter of its name is its key."""
        key = name[0] if key is None else key
        place = self.admission.take(key, weight, level)
        if place is not None:
            return place
        return self.admission.wait(
            key, weight, level, deadline=deadline, wake=lambda: self.called.append(name)
        )

    def refuses(self, name: str = "z", **options: float) -> ProxyError:
        """Let a request come that is refused; return how."""
        with pytest.raises(ProxyError) as refused:
            self.come(name, **options)  # type: ignore[arg-type]
        return refused.value

    def end(self, place: Place, served: float | None = 100.0, after: float = 0.0) -> None:
        self.clock.at += after
        self.admission.leave(place, served)

    def keep_pace(self, gap: float, times: int = 20) -> None:
        """Let slots become free at an even pace, until it is known. All must be free before."""
        held = [self.come("warm") for _ in range(self.slots)]
        for _ in range(times):
            self.end(held.pop(0), after=gap)
            held.append(self.come("warm"))
        for place in held:
            self.end(place, after=gap)


def retry_after(error: ProxyError) -> int:
    return int(dict(error.headers)[b"retry-after"])


# Slots


def test_no_more_than_allowed() -> None:
    """The next one waits, and has the slot as soon as it is free."""
    door = Door(slots=2)
    first, second = door.come("a1"), door.come("a2")
    third = door.come("a3")
    waited = third.state
    door.end(second)

    assert first.state is State.RUNNING
    assert waited is State.WAITING
    assert third.state is State.RUNNING
    assert door.called == ["a3"]


def test_giving_back_twice_is_once() -> None:
    """A slot is not two."""
    door = Door(slots=1)
    place = door.come()
    door.end(place)
    door.end(place)
    door.come()

    assert door.come().state is State.WAITING


def test_who_left_while_waiting_is_not_called() -> None:
    """The slot goes to the next."""
    door = Door(slots=1)
    running = door.come("a1")
    second = door.come("a2")
    door.come("a3")
    door.end(second)
    door.end(running)

    assert door.called == ["a3"]


def test_one_key_is_served_in_its_order() -> None:
    """First come, first served."""
    door = Door(slots=1)
    place = door.come("a0")
    waiting = [door.come(f"a{number}") for number in range(1, 6)]
    for each in [place, *waiting]:
        door.end(each)

    assert door.called == ["a1", "a2", "a3", "a4", "a5"]


@dataclass(frozen=True)
class Step:
    """Something that happens; `pick` says to whom."""

    what: str
    pick: int
    key: str
    level: int
    weight: float


steps = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(["come", "come", "come", "end", "cancel", "run out"]),
        pick=st.integers(0, 1000),
        key=st.sampled_from("abcd"),
        level=st.integers(-2, 2),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
    ),
    max_size=120,
)


@given(slots=st.integers(1, 4), size=st.integers(0, 8), steps=steps)
def test_whatever_happens_no_slot_is_lost(slots: int, size: int, steps: list[Step]) -> None:
    """Never more at work than allowed, never a free slot while somebody waits, nobody forgotten."""
    door = Door(slots=slots, size=size)
    admission = door.admission
    alive: list[Place] = []
    woken: list[Place] = []

    def come(step: Step) -> None:
        place = admission.take(step.key, step.weight, step.level)
        if place is None:
            box: list[Place] = []
            try:
                place = admission.wait(
                    step.key,
                    step.weight,
                    step.level,
                    deadline=math.inf,
                    wake=lambda: woken.append(box[0]),
                )
            except Overloaded:
                return
            box.append(place)
        alive.append(place)

    for step in steps:
        door.clock.at += 0.01
        in_state = {"end": State.RUNNING, "cancel": None, "run out": State.WAITING}
        if step.what == "come":
            come(step)
        else:
            wanted = in_state[step.what]
            ours = [each for each in alive if wanted is None or each.state is wanted]
            if ours:
                place = ours[step.pick % len(ours)]
                alive.remove(place)
                if step.what == "run out":
                    assert isinstance(admission.refusal(place), Overloaded)
                else:
                    admission.leave(place, float(step.pick))
        for place in [each for each in alive if each.state is State.DISPLACED]:
            assert place in woken
            alive.remove(place)
            admission.refusal(place)

        running = sum(each.state is State.RUNNING for each in alive)
        waiting = sum(each.state is State.WAITING for each in alive)
        assert admission.running == running <= slots
        assert admission.waiting == waiting <= size
        assert not waiting or running == slots

    for _ in range(len(alive)):
        place = next(each for each in alive if each.state is State.RUNNING)
        alive.remove(place)
        admission.leave(place, 1.0)
    assert not alive
    assert admission.running == admission.waiting == 0
    assert all(admission.take("a", 1.0, 0) is not None for _ in range(slots))


def test_leaving_the_queue_leaves_nothing_behind() -> None:
    """100,000 come and go behind one who waits, from few keys and from many."""
    door = Door(slots=1)
    running = door.come("a")
    first = door.come("a")
    queue = first.queue
    before = queue.remembered
    for number in range(100_000):
        place = door.come(key=f"key-{number % 7 if number % 2 else number}")
        door.end(place, None)
    left = queue.remembered
    door.end(running)

    assert left < before + 2 * MOST_RESTING
    assert first.state is State.RUNNING
    assert door.admission.waiting == 0


def test_one_key_that_comes_and_goes_leaves_even_less() -> None:
    """Neither in its own line nor in the order of the keys."""
    door = Door(slots=1)
    door.come("a")
    queue = door.come("a").queue
    for _ in range(100_000):
        door.end(door.come("a"), None)
        door.end(door.come("b"), None)

    assert queue.remembered < 200


def test_keys_that_are_seen_once_are_forgotten() -> None:
    """Also those that never had to wait, however much they are still held back for."""
    queue = FairQueue()
    for number in range(100_000):
        queue.settle(queue.start(f"key-{number}", 1.0), 1000.0)

    assert queue.remembered <= 2 * MOST_RESTING


# Classes


def test_a_higher_class_goes_first() -> None:
    """Whenever it came, and whatever its keys have had."""
    door = Door(slots=1)
    place = door.come("a0")
    low = door.come("b", level=-1)
    middle = door.come("c")
    high = door.come("a1", level=5)
    for each in (place, high, middle, low):
        door.end(each, 10_000)

    assert door.called == ["a1", "c", "b"]


def test_a_class_beyond_the_last_is_the_last() -> None:
    """Each class keeps books, so nobody can ask for as many as there are numbers."""
    door = Door(slots=10_000)
    queues = {id(door.come("a", level=level).queue) for level in range(-1000, 1000)}

    assert len(queues) == 21


# Fairness


@dataclass
class Tenant:
    """A key that always has so many requests waiting or at work."""

    name: str
    sizes: Callable[[random.Random], float]
    weight: float = 1.0
    concurrency: int = 40
    level: int = 0
    served: float = 0.0


@dataclass
class Job:
    """A request at work: an engine makes its tokens at an even pace."""

    tenant: Tenant
    place: Place
    size: float
    begun: float
    ends: float

    def made(self, now: float) -> float:
        """Return the tokens that exist so far."""
        return self.size * (now - self.begun) / (self.ends - self.begun)


def saturate(tenants: list[Tenant], *, slots: int = 8, requests: int = 16_000) -> None:
    """Run an engine that always has more to do than it can; count each tenant's tokens.

    The first quarter is not counted: what is usual has to be learnt.
    """
    chance = random.Random(1)
    door = Door(slots=slots, size=10_000, timeout=0)
    admission, clock = door.admission, door.clock
    numbers = itertools.count()
    jobs: list[tuple[float, int, Job]] = []

    def begin(tenant: Tenant, place: Place) -> None:
        size = tenant.sizes(chance)
        job = Job(tenant, place, size, clock.at, clock.at + 0.1 + size / 50)
        heapq.heappush(jobs, (job.ends, next(numbers), job))

    def ask(tenant: Tenant) -> None:
        place = admission.take(tenant.name, tenant.weight, tenant.level)
        if place is not None:
            begin(tenant, place)
            return
        waiting = admission.wait(
            tenant.name,
            tenant.weight,
            tenant.level,
            deadline=math.inf,
            wake=lambda: begin(tenant, waiting),
        )

    for tenant in tenants:
        for _ in range(tenant.concurrency):
            ask(tenant)
    for number in range(requests):
        if number == requests // 4:
            for tenant in tenants:
                tenant.served = 0.0
            for _, _, job in jobs:
                job.tenant.served -= job.made(clock.at)
        clock.at, _, job = heapq.heappop(jobs)
        job.tenant.served += job.size
        admission.leave(job.place, job.size)
        ask(job.tenant)
    for _, _, job in jobs:
        job.tenant.served += job.made(clock.at)


def small(chance: random.Random) -> float:
    return chance.uniform(20, 200)


def large(chance: random.Random) -> float:
    return chance.uniform(500, 4000)


def mixed(chance: random.Random) -> float:
    return chance.choice([2.0, 30.0, 30.0, 2500.0])


def heavy_tailed(chance: random.Random) -> float:
    return min(chance.paretovariate(1.3) * 30, 8000)


SIZES = [small, large, mixed, heavy_tailed]


@pytest.mark.parametrize("light", SIZES, ids=lambda sizes: sizes.__name__)
@pytest.mark.parametrize("heavy", SIZES, ids=lambda sizes: sizes.__name__)
def test_weights_are_kept_whatever_the_sizes(
    heavy: Callable[[random.Random], float], light: Callable[[random.Random], float]
) -> None:
    """Two keys with weights 3:1 are served tokens 3:1, to within 5 %."""
    heavy_key, light_key = Tenant("heavy", heavy, 3.0), Tenant("light", light)
    saturate([heavy_key, light_key])

    assert heavy_key.served / light_key.served == pytest.approx(3, rel=0.05)


def test_a_flood_does_not_help() -> None:
    """One key with fifty times as many requests has no more than the others."""
    flood = Tenant("flood", mixed, concurrency=1000)
    others = [Tenant(f"other-{number}", mixed, concurrency=20) for number in range(3)]
    saturate([flood, *others])

    for other in others:
        assert flood.served / other.served == pytest.approx(1, rel=0.05)


def test_what_one_does_not_want_the_others_have() -> None:
    """A key that asks for little gets all of it; the rest goes on to the others by weight."""
    modest = Tenant("modest", small, weight=10.0, concurrency=1)
    first, second = Tenant("first", large, weight=2.0), Tenant("second", large)
    saturate([modest, first, second])

    assert first.served / second.served == pytest.approx(2, rel=0.05)
    assert modest.served < second.served / 10


def test_an_idle_key_does_not_hoard() -> None:
    """However long it was away, it starts level with those that wait."""
    door = Door(slots=1)
    running = door.come("a")
    waiting = [door.come(f"a{number}") for number in range(60)]
    for place in waiting[:40]:
        door.end(running)
        running = place
    late = [door.come(f"b{number}") for number in range(40)]
    door.called.clear()
    for _ in range(20):
        door.end(running)
        name = door.called[-1]
        running = (late if name[0] == "b" else waiting)[int(name[1:])]

    assert 9 <= sum(name.startswith("b") for name in door.called) <= 11


def test_who_comes_first_to_an_empty_queue_does_not_hoard_either() -> None:
    """Nobody waits that it could be compared with: what counts is where the last one stood."""
    door = Door(slots=1)
    running = door.come("a")
    for _ in range(50):
        door.end(running, 1000)
        running = door.come("a")
    late = {f"b{number}": door.come(f"b{number}") for number in range(30)}
    mine = {f"a{number}": door.come(f"a{number}") for number in range(30)}
    for _ in range(20):
        door.end(running, 1000)
        running = (late | mine)[door.called[-1]]

    assert 9 <= sum(name.startswith("b") for name in door.called) <= 11


def test_the_truth_replaces_the_charge() -> None:
    """Two keys with equal weights, of which one says nothing and takes a lot."""
    big = Tenant("big", lambda chance: 5000.0)
    little = Tenant("little", lambda chance: 10.0)
    saturate([big, little], requests=40_000)

    assert big.served / little.served == pytest.approx(1, rel=0.05)


def test_one_long_answer_is_paid_for() -> None:
    """Its key waits until the other one has had as much, and at once: not after one more turn."""
    door = Door(slots=2)
    running, other = door.come("a"), door.come("c")
    waiting = {
        f"{key}{number}": door.come(f"{key}{number}") for number in range(30) for key in "ab"
    }
    door.end(running, 20_000)
    for _ in range(25):
        door.end(other, 500)
        other = waiting[door.called[-1]]

    assert [name[0] for name in door.called[:25]] == ["b"] * 25


def test_without_a_count_requests_are_equal() -> None:
    """Where nobody knows the tokens, each request is charged the same."""
    door = Door(slots=1)
    running = door.come("c")
    places = {f"{key}{number}": door.come(f"{key}{number}") for number in range(9) for key in "ab"}
    for _ in range(18):
        door.end(running, None)
        running = places[door.called[-1]]

    assert [name[0] for name in door.called] == list("ab" * 9)


# Refusing


def test_a_full_queue_is_overload() -> None:
    """With a time after which to come again."""
    door = Door(slots=1, size=1)
    door.come("a"), door.come("a")

    error = door.refuses("a")

    assert isinstance(error, Overloaded)
    assert retry_after(error) == 1


def test_no_queue_at_all() -> None:
    """With a size of 0 whoever finds no slot is refused."""
    door = Door(slots=1, size=0)
    door.come("a")

    assert isinstance(door.refuses("b"), Overloaded)


def test_a_flood_does_not_fill_the_queue_for_others() -> None:
    """Who has less than its part of a full queue takes a place from who has more."""
    door = Door(slots=1, size=10)
    door.come("a")
    flood = [door.come(f"a{number}") for number in range(10)]
    others = [door.come(f"b{number}") for number in range(5)]
    refused = door.refuses("b")

    assert [place.state for place in others] == [State.WAITING] * 5
    assert [place.state for place in flood] == [State.WAITING] * 5 + [State.DISPLACED] * 5
    assert door.called == ["a9", "a8", "a7", "a6", "a5"]
    assert isinstance(refused, Overloaded)
    assert isinstance(door.admission.refusal(flood[9]), Overloaded)
    assert door.admission.waiting == 10


def test_a_key_with_more_weight_has_more_places() -> None:
    """As it has more of everything else."""
    door = Door(slots=1, size=12)
    door.come("a")
    flood = [door.come(f"a{number}") for number in range(12)]
    for number in range(9):
        door.come(f"b{number}", weight=3.0)
    refused = door.refuses("b", weight=3.0)

    assert isinstance(refused, Overloaded)
    assert sum(place.state is State.WAITING for place in flood) == 3


def test_a_lower_class_makes_room() -> None:
    """The lowest first, and never a higher one."""
    door = Door(slots=1, size=2)
    door.come("a")
    low = door.come("b", level=-2)
    middle = door.come("c", level=-1)
    door.come("d")

    assert low.state is State.DISPLACED
    assert middle.state is State.WAITING
    assert isinstance(door.refuses("e", level=-5), Overloaded)


def test_the_queue_has_a_clock() -> None:
    """Who has waited so long is told so, and is out of the queue."""
    door = Door(slots=1, timeout=30)
    door.come("a")
    place = door.come("b")
    until = place.until - door.clock.at
    error = door.admission.refusal(place)

    assert until == 30
    assert isinstance(error, Overloaded)
    assert "30 s" in error.detail
    assert door.admission.waiting == 0


def test_no_clock_is_no_clock() -> None:
    """0 waits for ever."""
    door = Door(slots=1, timeout=0)
    door.come("a")

    assert door.come("b").until == math.inf


# What is told of the wait


def test_retry_after_is_honest() -> None:
    """The place in the queue times the pace at which slots became free."""
    door = Door(slots=2, size=9, timeout=0)
    door.keep_pace(0.5)
    door.come("a"), door.come("a")
    for _ in range(9):
        door.come("a")

    assert retry_after(door.refuses("a")) == 5  # ten turns of half a second


def test_retry_after_has_bounds() -> None:
    """From 1 to 60 seconds, however fast or slow it goes."""
    fast, slow = Door(slots=1, size=0), Door(slots=1, size=0, timeout=0)
    fast.keep_pace(0.001)
    slow.keep_pace(500)
    fast.come("a"), slow.come("a")

    assert retry_after(fast.refuses()) == 1
    assert retry_after(slow.refuses()) == LATEST


def test_the_turn_of_a_newcomer_comes_before_the_end_of_the_line() -> None:
    """One key with a long line makes nobody else's wait long."""
    door = Door(slots=1, size=100, timeout=0)
    door.keep_pace(1.0)
    door.come("a")
    for _ in range(100):
        door.come("a")

    assert retry_after(door.refuses("a")) == LATEST
    assert door.come("b", deadline=door.clock.at + 5).state is State.WAITING


def test_times_without_work_do_not_count() -> None:
    """A night in which nothing was asked is no sign of a slow engine."""
    door = Door(slots=1, size=1)
    door.keep_pace(1.0)
    door.clock.at += 36_000
    door.come("a"), door.come("a")

    assert retry_after(door.refuses("a")) <= 3


def test_a_silence_is_noticed() -> None:
    """If nothing becomes free any more, the wait that is told grows."""
    door = Door(slots=1, size=3, timeout=0)
    door.keep_pace(1.0)
    for _ in range(4):
        door.come("a")
    before = retry_after(door.refuses("a"))
    door.clock.at += 120

    assert before == 4
    assert retry_after(door.refuses("a")) > 10


def test_a_deadline_that_would_pass_in_the_queue() -> None:
    """Is answered at once, by 504, and takes no place."""
    door = Door(slots=1)
    door.keep_pace(2.0)
    door.come("a")
    for _ in range(3):
        door.come("b")

    error = door.refuses("b", deadline=door.clock.at + 5)

    assert isinstance(error, DeadlineTooShort)
    assert error.status == 504
    assert door.admission.waiting == 3
    assert door.come("b", deadline=door.clock.at + 20).state is State.WAITING


def test_a_deadline_that_has_passed() -> None:
    """Even where nothing is known of the pace."""
    door = Door(slots=1)
    door.come("a")

    assert isinstance(door.refuses(deadline=door.clock.at), DeadlineTooShort)


def test_a_deadline_that_passes_after_all() -> None:
    """It ends the wait, and that is what is told."""
    door = Door(slots=1)
    door.come("a")
    place = door.come("b", deadline=door.clock.at + 3)

    assert place.until == door.clock.at + 3
    assert isinstance(door.admission.refusal(place), DeadlineTooShort)


def test_a_guess_turns_nobody_away_who_has_the_time() -> None:
    """The pace may be about to change: the queue's own time is over when it is over."""
    door = Door(slots=1, size=100, timeout=30)
    door.keep_pace(300)
    door.come("a")
    waiting = [door.come("a") for _ in range(100)]

    assert {place.state for place in waiting} == {State.WAITING}
    assert {place.until for place in waiting} == {door.clock.at + 30}
    assert isinstance(door.refuses("a"), Overloaded)
    assert isinstance(door.refuses("b", deadline=door.clock.at + 60), DeadlineTooShort)


def test_while_nothing_is_known_nobody_is_turned_away_by_a_guess() -> None:
    """Not even one with little time: the slots may be free in a moment."""
    door = Door(slots=1)
    door.come("a")
    door.clock.at += 20

    assert door.come("b", deadline=door.clock.at + 0.1).state is State.WAITING


def test_before_anything_is_known_the_age_of_the_oldest_is_told() -> None:
    """What has been at work for so long may well be for as long again."""
    door = Door(slots=2, size=1)
    oldest = door.come("a")
    door.clock.at += 20
    door.come("a")
    waiting = door.come("a")
    door.clock.at += 5
    full = retry_after(door.refuses("a"))
    late = retry_after(door.admission.refusal(waiting))
    door.admission.leave(oldest)
    door.come("a"), door.come("b")
    known = retry_after(door.refuses("c"))

    assert (full, late) == (25, 25)
    assert known == 10  # a slot became free after five seconds, and one waits


def test_who_has_waited_is_as_old_as_its_slot() -> None:
    """The time in the queue says nothing of how long a request takes."""
    door = Door(slots=1, size=1)
    first = door.come("a")
    door.come("b")
    door.clock.at += 20
    door.admission.resize(3)  # and so without a slot that became free
    door.end(first)
    door.admission.resize(1)
    door.come("c")
    door.clock.at += 5

    assert retry_after(door.refuses("c")) == 5


def test_one_long_answer_does_not_count_where_the_pace_is_known() -> None:
    """The others go on around it."""
    door = Door(slots=2, size=0)
    door.keep_pace(0.5)
    door.come("long")
    for _ in range(40):
        door.end(door.come("a"), after=1.0)
    door.come("a")

    assert retry_after(door.refuses("b")) <= 2


def test_an_old_pace_is_forgotten() -> None:
    """What was slow a while ago says nothing of the requests of now."""
    door = Door(slots=1)
    door.keep_pace(300)
    door.clock.at += STALE + 1
    door.come("a")
    door.clock.at += 2
    for _ in range(5):
        door.come("b")

    assert door.come("b", deadline=door.clock.at + 1).state is State.WAITING


# Several workers


TOTALS = [
    (total, workers)
    for workers in (1, 2, 3, 4, 7, 16)
    for total in (1, 2, 5, 16, 100, 101)
    if total >= workers
]


@pytest.mark.parametrize(("total", "workers"), TOTALS)
def test_the_parts_of_the_workers_add_up(total: int, workers: int) -> None:
    """And no two differ by more than one."""
    parts = [part_of(total, workers, index) for index in range(workers)]

    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


def test_no_worker_is_without_a_slot() -> None:
    """Fewer slots than workers: each has one, for one without would refuse all it is sent."""
    assert [part_of(2, 4, index) for index in range(4)] == [1, 1, 1, 1]


def test_no_limit_has_no_parts() -> None:
    """0 stays 0 for everybody."""
    assert [part_of(0, 4, index) for index in range(4)] == [0, 0, 0, 0]

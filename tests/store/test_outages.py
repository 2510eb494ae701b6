"""A Redis that is away, frozen, forgetful, full, read-only, or full of other people's values."""

import asyncio
import time
from statistics import median

import pytest
from redis.exceptions import ResponseError

from llmproxy.store.interface import Kind, Meter, Store, Unavailable
from llmproxy.store.redis import RedisStore
from llmproxy.store.redis_client import will_pass
from llmproxy.store.urls import place
from tests.store.waiting import until, until_available, until_left
from tests.support.redis_server import RedisServer, redis_running

SLOTS = Meter("slots", Kind.HELD, 3)
RATE = Meter("rate", Kind.RATE, 100, 86400)
TOKENS = Meter("tokens", Kind.RATE, 100, 86400, provisional=True)
MONEY = Meter("money", Kind.SPENT, 10, window="total")

LONGEST_WAIT = 0.05  # seconds that an outage may add to a request
SLACK = 0.05  # seconds that a busy machine may add to that
AT_ONCE = 0.01  # seconds, on a busy machine; without one it is microseconds


async def refusal_time(store: Store) -> float:
    """Return how long it takes to hear that the store cannot be asked."""
    began = time.perf_counter()
    with pytest.raises(Unavailable):
        await store.take([(RATE, 1)])
    return time.perf_counter() - began


@pytest.mark.parametrize("kind", ["killed", "frozen"])
async def test_an_outage_costs_little_and_then_nothing(
    fresh_redis: RedisServer, redis_url: str, kind: str
) -> None:
    """The first requests wait for 50 ms at most, later ones not at all; then it is found again."""
    redis_store = RedisStore(place(redis_url))
    await until(lambda: took(redis_store))
    await asyncio.to_thread(fresh_redis.kill if kind == "killed" else fresh_redis.freeze)

    first = await asyncio.gather(*(refusal_time(redis_store) for _ in range(20)))
    later = [await refusal_time(redis_store) for _ in range(20)]
    await asyncio.to_thread(fresh_redis.start if kind == "killed" else fresh_redis.thaw)
    back = time.perf_counter()
    await until_available(redis_store)

    # Of most: who waits too long does so every time, a machine that stands still does it once.
    assert median(first) < LONGEST_WAIT + SLACK
    assert median(later) < AT_ONCE
    assert time.perf_counter() - back < 5
    await until(lambda: took(redis_store))
    await redis_store.aclose()


async def test_nothing_is_done_twice_and_nothing_is_lost_in_an_outage(
    fresh_redis: RedisServer, redis_store: RedisStore
) -> None:
    """What the frozen server does late counts once, and what nobody waits for is given back."""
    grant = await redis_store.take([(SLOTS, 1), (TOKENS, 10), (MONEY, 2)])
    await asyncio.to_thread(fresh_redis.freeze)
    wishes = [
        asyncio.create_task(
            redis_store.take([(meter, 1) for meter in (SLOTS, RATE, TOKENS, MONEY)])
        )
        for _ in range(3)
    ]
    await asyncio.sleep(0)  # they go out together with this
    await redis_store.settle([(SLOTS, 1, 0), (TOKENS, 10, 5), (MONEY, 2, 1)], grant.owner)
    heard = await asyncio.gather(*wishes, return_exceptions=True)
    await redis_store.settle([(MONEY, 0, 2)], grant.owner)
    await asyncio.sleep(1.2)  # so that its connection is given up, with the call lying in it
    await asyncio.to_thread(fresh_redis.thaw)
    await until_left(redis_store, SLOTS, 3)

    assert all(isinstance(each, Unavailable) for each in heard)
    readings = await redis_store.read([SLOTS, RATE, TOKENS, MONEY])
    assert [round(each.left, 1) for each in readings] == [3, 100, 95, 7]
    assert redis_store.events["lost"] == 0


async def test_a_call_that_was_answered_into_nothing_is_carried_out_once(
    fresh_redis: RedisServer, redis_store: RedisStore
) -> None:
    """The connection breaks between the deed and the answer, time and again."""
    day = Meter("day", Kind.RATE, 1e6, 86400 * 365)
    granted = lost = 0
    for _ in range(40):
        asked = [asyncio.create_task(redis_store.take([(day, 1), (SLOTS, 1)])) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.to_thread(fresh_redis.ask, "CLIENT", "KILL", "TYPE", "normal")
        for each in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(each, Unavailable):
                lost += 1
                continue
            assert not isinstance(each, BaseException)
            granted += each.granted
            if each.granted:
                await redis_store.settle([(SLOTS, 1, 0)], each.owner)
        await until_available(redis_store)
    await until_left(redis_store, SLOTS, 3)

    (reading,) = await redis_store.read([day])
    assert reading.left == pytest.approx(1e6 - granted, abs=0.5)
    assert granted > 0


@pytest.mark.parametrize("command", ["FLUSHALL", "SCRIPT FLUSH"])
async def test_a_server_that_has_forgotten_is_taught_again(
    fresh_redis: RedisServer, redis_store: RedisStore, command: str
) -> None:
    """Nobody notices, but for what was counted."""
    grant = await redis_store.take([(SLOTS, 3)])
    fresh_redis.ask(*command.split())

    again = await redis_store.take([(SLOTS, 1)])
    await redis_store.settle([(SLOTS, 3, 0)], grant.owner)

    (reading,) = await redis_store.read([SLOTS])
    if command == "FLUSHALL":
        assert again.granted and again.owner != grant.owner
        assert reading.left == 2  # what the lost one gives back is not taken from the new one
    else:
        assert not again.granted
        assert reading.left == 3
        assert redis_store.events["reloaded"] == 2
    assert redis_store.events["unavailable"] == 0


async def test_a_restart_is_survived(fresh_redis: RedisServer, redis_store: RedisStore) -> None:
    """An empty server on the same place is a new beginning, and no error."""
    await redis_store.take([(SLOTS, 3)])
    await asyncio.to_thread(fresh_redis.restart)
    await until(lambda: took(redis_store))

    assert redis_store.events["lost"] == 0


async def took(store: Store) -> bool:
    """Try to take one."""
    return (await store.take([(SLOTS, 1)])).granted


@pytest.mark.parametrize("kind", ["r", "p", "h", "s", "k", "l", "o"])
@pytest.mark.parametrize("foreign", ["type", "garbage"])
async def test_a_foreign_value_is_as_good_as_none(
    fresh_redis: RedisServer, redis_store: RedisStore, kind: str, foreign: str
) -> None:
    """It is deleted and counted, and the request goes on."""
    taken = [(SLOTS, 1.0), (RATE, 50.0), (TOKENS, 50.0), (MONEY, 5.0)]
    owner = (await redis_store.take(taken)).owner
    await redis_store.put("record", b"x")
    await redis_store.append("list", b"x", keep=5)
    names = {"r": "rate", "p": "tokens", "h": "slots", "s": "money", "k": "record", "l": "list"}
    names["o"] = owner
    key = f"llmproxy:1:{{s}}:{kind}:{names[kind]}"
    spoil(fresh_redis, key, kind, foreign)

    grant = await redis_store.take([(meter, 1) for meter, _ in taken])
    value, entries = await redis_store.get("record"), await redis_store.entries("list", last=5)

    assert grant.granted
    if (kind, foreign) in {("k", "garbage"), ("l", "garbage"), ("o", "garbage")}:
        return  # any text is a record, and a lease that cannot be read has ended
    assert redis_store.events["garbage"] == 1
    left = [round(reading.left) for reading in grant.readings]
    assert left == [
        1 if kind not in "ho" else 2,
        49 if kind != "r" else 99,
        49 if kind not in "po" else 99,
        4 if kind not in "so" else 9,
    ]
    assert value == (None if kind == "k" else b"x")
    assert entries == ([] if kind == "l" else [b"x"])


def spoil(server: RedisServer, key: str, kind: str, foreign: str) -> None:
    """Put something there that we would never write."""
    if foreign == "type":
        server.ask("DEL", key)
        server.ask("SADD", key, "member")
    elif kind in "phso":
        for field in ("s", "e", "somebody"):
            server.ask("HSET", key, field, "-nan")
    elif kind in "rk":
        server.ask("SET", key, "12 apples")


@pytest.mark.parametrize(
    "value", ["", "1", "nan 1", "1 inf", "-5 1", "1e999 1", "5 5 5", "\0" * 16]
)
async def test_a_rate_that_cannot_be_read_is_none(
    fresh_redis: RedisServer, redis_store: RedisStore, value: str
) -> None:
    """Half a value, or one that is no number, is not believed."""
    fresh_redis.ask("SET", "llmproxy:1:{s}:r:rate", value)

    (reading,) = await redis_store.read([RATE])

    assert reading.left == 100
    assert redis_store.events["garbage"] == 1


async def test_no_key_lives_for_ever(fresh_redis: RedisServer, redis_store: RedisStore) -> None:
    """Every meter and every lease has an end; so has a record that was to have one."""
    never = Meter("never", Kind.RATE, 1e-9, 1e9, hard=False)
    neither = Meter("neither", Kind.RATE, 1e-9, 1e9, hard=False, provisional=True)
    meters = (SLOTS, RATE, TOKENS, MONEY, never, neither)
    grant = await redis_store.take([(meter, 1) for meter in meters])
    await redis_store.settle(
        [(SLOTS, 1, 0), (MONEY, 1, 1), (RATE, 1, 2), (TOKENS, 1, 2)], grant.owner
    )
    await redis_store.take([(SLOTS, 1)])
    await redis_store.add("nonce", b"x", within=60)
    names = ["r:rate", "r:never", "p:tokens", "p:neither", "h:slots", "s:money", "k:nonce"]
    names.append(f"o:{grant.owner}")

    ends = [int(fresh_redis.ask("TTL", f"llmproxy:1:{{s}}:{name}")[1:]) for name in names]

    assert fresh_redis.ask("DBSIZE") == f":{len(names)}"
    assert all(0 < each <= 401 * 86400 for each in ends), ends


async def test_a_server_that_takes_no_writes_cannot_be_asked(
    fresh_redis: RedisServer, redis_store: RedisStore
) -> None:
    """Neither as a replica nor when it is full; nothing is half done, and it comes back."""
    grant = await redis_store.take([(SLOTS, 1), (MONEY, 1)])
    for stop, go in (
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    ):
        fresh_redis.ask(*stop)
        with pytest.raises(Unavailable):
            await redis_store.take([(SLOTS, 1), (MONEY, 1)])
        await redis_store.settle([(MONEY, 0, 1)], grant.owner)
        fresh_redis.ask(*go)
        await until_available(redis_store)

    slots, money = await redis_store.read([SLOTS, MONEY])
    assert (slots.left, money.left) == (2, 7)
    assert redis_store.events["lost"] == 0


@pytest.mark.parametrize(
    ("stop", "go"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    ],
)
async def test_what_meets_a_refusal_of_writes_first_is_not_lost(
    fresh_redis: RedisServer, redis_store: RedisStore, stop: tuple[str, ...], go: tuple[str, ...]
) -> None:
    """It may be a settlement that finds out, and its place would be held for good."""
    grant = await redis_store.take([(SLOTS, 1)])
    fresh_redis.ask(*stop)
    await redis_store.settle([(SLOTS, 1, 0)], grant.owner)
    await until(lambda: is_unavailable(redis_store))
    fresh_redis.ask(*go)

    await until_left(redis_store, SLOTS, 3)
    assert redis_store.events["lost"] == 0


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("@user_script:1: @user_script: 1: -OOM command not allowed", True),
        ("@user_script:1: @user_script: 1: -READONLY You can't write against a replica.", True),
        ("@user_script:1: user_script:1: attempt to call field '?' (a nil value)", False),
    ],
)
def test_a_server_before_7_says_the_same_in_more_words(said: str, passes: bool) -> None:
    """What a script met there stands behind the place where it met it."""
    error = ResponseError(f"Error running script (call to f_3d24d762): {said}")

    assert will_pass(error) is passes


async def test_a_busy_server_cannot_be_asked(
    fresh_redis: RedisServer, redis_store: RedisStore
) -> None:
    """Somebody else's script that does not end is no reason to wait."""
    await redis_store.take([(SLOTS, 1)])
    fresh_redis.ask("CONFIG", "SET", "busy-reply-threshold", "10")
    endless = asyncio.create_task(
        asyncio.to_thread(fresh_redis.ask, "EVAL", "while true do end", "0")
    )
    try:
        await until(lambda: is_unavailable(redis_store))
    finally:
        await asyncio.to_thread(fresh_redis.ask, "SCRIPT", "KILL")
        fresh_redis.ask("CONFIG", "SET", "busy-reply-threshold", "5000")
        await endless
    await until_left(redis_store, SLOTS, 2)


async def is_unavailable(store: Store) -> bool:
    """Ask, and hear that it cannot be asked."""
    try:
        await store.read([SLOTS])
    except Unavailable:
        return True
    return False


async def test_two_versions_do_not_meet(fresh_redis: RedisServer, redis_store: RedisStore) -> None:
    """Keys of another layout are neither read nor touched."""
    theirs = ["llmproxy:0:{s}:h:slots", "llmproxy:2:{s}:r:rate", "llmproxy:h:slots"]
    for key in theirs:
        fresh_redis.ask("SET", key, "theirs")

    grant = await redis_store.take([(SLOTS, 3), (RATE, 100)])
    await redis_store.put("x", b"")

    assert grant.granted
    assert await redis_store.names("") == ["x"]
    assert redis_store.events["garbage"] == 0
    assert all(fresh_redis.ask("EXISTS", key) == ":1" for key in theirs)


async def test_a_password_is_used_and_a_wrong_one_is_no_crash() -> None:
    """Who is not let in cannot ask."""
    with redis_running({"requirepass": "se:cret"}) as server:
        right, wrong = (
            RedisStore(place(f"redis://:{word}@127.0.0.1:{server.port}/0"))
            for word in ("se%3Acret", "guess")
        )
        try:
            assert (await right.take([(SLOTS, 1)])).granted
            with pytest.raises(Unavailable):
                await wrong.take([(SLOTS, 1)])
        finally:
            await asyncio.gather(right.aclose(), wrong.aclose())

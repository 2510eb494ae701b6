"""Issued keys at hand: few questions, quick revocation, and no verdict while nobody can say."""

import asyncio
import secrets

import pytest

from llmproxy import clock
from llmproxy.auth import lookups
from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.directory import Directory
from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.keyring import Keyring
from llmproxy.auth.secrets import new_key, sha256_of
from llmproxy.errors import StoreUnavailable
from llmproxy.records import Principal
from tests.auth.making import Seen, ShakyStore, Time


class Worker:
    """What one process has: a directory of its own over the store of all."""

    def __init__(self, store: ShakyStore) -> None:
        self.issued = IssuedKeys(store)
        self.directory = Directory(self.issued)
        self.keyring = Keyring(ConfiguredKeys(), issued=self.directory)

    async def find(self, secret: str) -> Principal | None:
        return await self.keyring.find(secret.encode())


@pytest.fixture
def worker(store: ShakyStore) -> Worker:
    return Worker(store)


async def test_a_key_is_found_and_then_known(worker: Worker, store: ShakyStore) -> None:
    """The second time nothing is asked, and nothing suspends."""
    new = await worker.issued.create("alice")
    found = await worker.find(new.secret)
    asked = store.lookups
    asking = worker.find(new.secret)

    with pytest.raises(StopIteration) as returned:
        asking.send(None)
    assert returned.value.value is found
    assert found is not None and found.name == "alice"
    assert store.lookups == asked == 1
    questions = store.asked.total()
    for _ in range(10):
        assert await worker.find(new.secret) is found
        await asyncio.sleep(0)
    assert store.asked.total() == questions


@pytest.mark.parametrize(
    "secret", ["sk-llmproxy-", "sk-llmproxy-" + "a" * 49, "sk-other", "*", "'"]
)
async def test_what_cannot_be_ours_is_not_looked_up(
    secret: str, worker: Worker, store: ShakyStore
) -> None:
    """No question of any kind reaches the store."""
    assert await worker.find(secret) is None
    assert not store.asked


async def test_a_thousand_at_once_are_as_many_questions_as_keys(
    worker: Worker, store: ShakyStore
) -> None:
    """A new worker meets all callers in the same moment."""
    made = [await worker.issued.create(f"k{number}") for number in range(10)]
    fresh = Worker(store)
    store.asked.clear()
    found = await asyncio.gather(*(fresh.find(made[n % 10].secret) for n in range(1000)))

    assert [each.name if each else None for each in found] == [f"k{n % 10}" for n in range(1000)]
    assert store.lookups <= 10


async def test_one_who_leaves_does_not_end_the_lookup_of_the_others(
    worker: Worker, store: ShakyStore
) -> None:
    """The first of them has started it."""
    new = await worker.issued.create("alice")
    await worker.find(new_key())
    first = asyncio.create_task(worker.find(new.secret))
    second = asyncio.create_task(worker.find(new.secret))
    await asyncio.sleep(0)
    first.cancel()

    assert await second is not None
    assert first.cancelled() or first.cancelling()
    assert store.lookups == 2


async def test_unknown_keys_fill_a_bounded_table_of_their_own(
    worker: Worker, store: ShakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good keys are not pushed out by them, and a repeated one is no question."""
    monkeypatch.setattr(lookups, "MOST_MISSED", 50)
    new = await worker.issued.create("alice")
    await worker.find(new.secret)
    made_up = [new_key() for _ in range(500)]
    for secret in made_up:
        assert await worker.find(secret) is None
    asked = store.lookups
    for _ in range(20):
        assert await worker.find(made_up[-1]) is None
        assert await worker.find(new.secret) is not None

    assert len(worker.directory._keys._missed) == 50
    assert store.lookups == asked


async def test_known_keys_are_bounded_too(
    worker: Worker, store: ShakyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was not used for longest goes."""
    monkeypatch.setattr(lookups, "MOST_FOUND", 3)
    made = [await worker.issued.create(f"k{number}") for number in range(5)]
    for number in (0, 1, 2, 0, 3, 0, 4, 0):
        assert await worker.find(made[number].secret) is not None

    assert len(worker.directory._keys._found) == 3
    assert store.lookups == 5


async def test_a_revoked_key_is_refused_in_every_worker_within_five_seconds(
    store: ShakyStore, passing: Time
) -> None:
    """Whether the worker is busy or has just been idle."""
    issued = IssuedKeys(store)
    new = await issued.create("alice")
    busy, idle = Worker(store), Worker(store)
    assert await busy.find(new.secret) and await idle.find(new.secret)
    await issued.revoke("alice")
    for _ in range(49):
        passing.passes(0.1)
        await busy.find(new.secret)
        await asyncio.sleep(0)

    assert await busy.find(new.secret) is None
    assert await idle.find(new.secret) is None


async def test_a_new_key_works_although_it_was_tried_before(
    worker: Worker, store: ShakyStore, passing: Time
) -> None:
    """What was found missing is looked up again after a change."""
    new = await worker.issued.create("alice")
    document = {name: value for name, value in store._records.items() if "digest:" in name}
    for name in document:
        await store.delete(name)
    assert await worker.find(new.secret) is None
    store._records.update(document)
    passing.passes(5)
    assert await worker.find(new.secret) is None
    await worker.issued.create("bob")
    passing.passes(5)

    assert await worker.find(new.secret) is not None


async def test_a_key_ends_by_itself(worker: Worker, store: ShakyStore, passing: Time) -> None:
    """By its date, and after a rotation; no change is needed for that."""
    old = await worker.issued.create("alice", {"expires": clock.wall() + 100})
    new = await worker.issued.rotate("alice", overlap=50)
    assert await worker.find(old.secret) and await worker.find(new.secret)

    passing.passes(51)
    assert await worker.find(old.secret) is None
    assert await worker.find(new.secret) is not None
    passing.passes(50)
    assert await worker.find(new.secret) is None


async def test_while_the_store_is_down_known_keys_go_on_for_ten_minutes(
    worker: Worker, store: ShakyStore, passing: Time
) -> None:
    """The others are told to come back; nobody is refused and nobody is let in."""
    new = await worker.issued.create("alice")
    other = await worker.issued.create("bob")
    assert await worker.find(new.secret)
    for _ in range(900):  # known long ago, and known to be true until now
        passing.passes(1)
        await worker.find(new.secret)
        await asyncio.sleep(0)
    store.down = True
    passing.passes(6)
    assert await worker.find(new.secret)
    for secret in (other.secret, new_key()):
        with pytest.raises(StoreUnavailable) as refused:
            await worker.find(secret)
        assert (b"retry-after", b"5") in refused.value.headers
    for _ in range(58):
        passing.passes(10)
        assert await worker.find(new.secret)
    passing.passes(30)
    with pytest.raises(StoreUnavailable):
        await worker.find(new.secret)

    store.down = False
    passing.passes(2)
    await worker.directory._freshness.look()
    assert await worker.find(new.secret) and await worker.find(other.secret)


async def test_the_grace_counts_from_when_a_key_was_known_to_be_good(
    worker: Worker, store: ShakyStore, passing: Time
) -> None:
    """Also for one that has to be looked up again, because something had changed."""
    new = await worker.issued.create("alice")
    for _ in range(20):
        assert await worker.find(new.secret)
        passing.passes(300)
    await worker.directory._freshness.look()
    await worker.issued.create("bob")
    await worker.directory._freshness.look()
    store.down = True

    assert await worker.find(new.secret)
    passing.passes(601)
    with pytest.raises(StoreUnavailable):
        await worker.find(new.secret)


async def test_a_store_that_was_down_from_the_start_is_no_verdict(
    worker: Worker, store: ShakyStore, passing: Time
) -> None:
    """A restarted worker knows nobody."""
    new = await worker.issued.create("alice")
    store.down = True
    with pytest.raises(StoreUnavailable):
        await worker.find(new.secret)
    store.down = False
    passing.passes(5)

    assert await worker.find(new.secret)


async def test_an_emptied_store_is_noticed(
    worker: Worker, store: ShakyStore, passing: Time
) -> None:
    """The keys are gone, and those made afterwards work although the digest key is another."""
    old = await worker.issued.create("alice")
    assert await worker.find(old.secret)
    store._records.clear()
    passing.passes(5)
    assert await worker.find(old.secret) is None

    new = await Worker(store).issued.create("alice")
    passing.passes(5)
    assert await worker.find(new.secret)


async def test_signing_keys_of_a_name_are_at_hand_too(
    worker: Worker, store: ShakyStore, passing: Time
) -> None:
    """Both of a rotation; none where the key was not made for it."""
    await worker.issued.create("alice", signing=True)
    await worker.issued.create("bob")
    await worker.issued.rotate("alice", overlap=100)

    assert len(await worker.keyring.signing("alice")) == 2
    assert await worker.keyring.signing("bob") == ()
    assert await worker.keyring.signing("nobody") == ()
    assert await worker.keyring.signing("../*") == ()
    asked = store.asked["keys:name"]
    assert len(await worker.keyring.signing("alice")) == 2
    assert store.asked["keys:name"] == asked
    passing.passes(101)
    [key] = await worker.keyring.signing("alice")
    assert key.principal.method == "hmac"


async def test_nothing_shows_a_key(worker: Worker) -> None:
    """What is kept of it is not printed either."""
    new = await worker.issued.create("alice", signing=True)
    await worker.find(new.secret)
    kept = [*worker.directory._keys._found.values(), *await worker.keyring.signing("alice")]

    Seen(repr(kept)).has_none_of(new.secret, sha256_of(new.secret.encode()), secrets.token_bytes(9))
    [signing] = await worker.keyring.signing("alice")
    [entry] = worker.directory._keys._found.values()
    assert entry.value is not None
    Seen(repr(kept)).has_none_of(signing.secret, entry.value.digest)


async def test_nothing_is_left_running(worker: Worker, passing: Time) -> None:
    """A look that is under way ends with the directory."""
    new = await worker.issued.create("alice")
    await worker.find(new.secret)
    passing.passes(2)
    before = asyncio.all_tasks()
    await worker.find(new.secret)
    assert asyncio.all_tasks() != before
    await worker.keyring.aclose()

    assert asyncio.all_tasks() == before

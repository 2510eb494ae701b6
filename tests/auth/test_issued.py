"""Keys that are made, listed, rotated and revoked; what the store sees of them."""

import asyncio
from pathlib import Path

import pytest

from llmproxy.auth.documents import IssuedKey, read, write
from llmproxy.auth.issued import Contended, IssuedKeys, NameTaken, NoSuchKey
from llmproxy.auth.secrets import could_be_issued, sha256_of, signing_secret
from llmproxy.records import Budget, Limit, Principal
from llmproxy.store.interface import Store, Unavailable
from llmproxy.store.memory import MemoryStore
from llmproxy.store.opening import open_store
from tests.auth.making import FIELDS, Seen, ShakyStore, Time
from tests.support.redis_server import RedisServer

FULL = FIELDS.read(
    {
        "team": "röd:{x}*",
        "tier": "gold",
        "tags": ["b", "a"],
        "role": "viewer",
        "models": "llama-*|phi",
        "routes": "chat",
        "networks": "10.0.0.0/8|2001:db8::/32",
        "limits": "60 req/min|8 concurrent",
        "budget": "10 usd/day",
        "weight": 2,
        "priority": 1,
        "max_tokens": 100,
        "expires": "2090-01-01",
    }
)


def everything_in(store: MemoryStore) -> str:
    return repr(store._records)


async def test_a_key_is_shown_once_and_kept_as_a_digest(store: ShakyStore) -> None:
    """The store has nothing of it, not even its plain hash."""
    new = await IssuedKeys(store).create("alice", FULL, note="for the demo", signing=True)
    secret = new.secret.encode()

    assert could_be_issued(secret)
    Seen(everything_in(store) + repr(new)).has_none_of(secret, sha256_of(secret))
    Seen(repr(new)).has_none_of(signing_secret(secret))


async def test_all_fields_come_back(store: ShakyStore) -> None:
    """What was granted is what is found."""
    issued = IssuedKeys(store)
    new = await issued.create("alice", FULL, note="for the demo", unsigned=True)
    [key] = await issued.all_keys()

    assert key == new.key
    assert key.principal.limits == (Limit(60, "req", 60), Limit(8, "concurrent"))
    assert key.principal.budgets == (Budget(10, "usd", "day"),)
    assert key.principal.team == "röd:{x}*"
    assert (key.note, key.unsigned, key.signing) == ("for the demo", True, None)
    assert key.until == key.principal.expires


def test_a_document_of_another_version_is_no_verdict() -> None:
    """During an update the older workers cannot tell; 401 would be a lie."""
    document = write(IssuedKey(Principal("i", "n"), "abc", 1.0))

    assert read(document).principal.name == "n"
    for wrong in (document.replace(b'"v":1', b'"v":2'), b"{}", b"[", document[:40]):
        with pytest.raises(Unavailable) as raised:
            read(wrong)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("garbage", [b"", b"{{{", b"5", b"\x01", b"{}", b'{"digests":5}', b"[]"])
async def test_a_name_that_cannot_be_read_is_no_verdict(garbage: bytes, store: ShakyStore) -> None:
    """As with a key: the store is as good as away. Nothing fails in words of its own."""
    issued = IssuedKeys(store)
    await issued.create("alice")
    await store.put("keys:name:alice", garbage)

    for asked in (
        issued.all_keys(),
        issued.any_works(),
        issued.named("alice"),
        issued.create("alice"),
        issued.rotate("alice", overlap=1),
        issued.revoke("alice"),
    ):
        with pytest.raises(Unavailable):
            await asked


async def test_a_name_is_given_once(store: ShakyStore) -> None:
    """Of two who make it at the same time one is refused, and its key is gone."""
    issued = IssuedKeys(store)
    made = await asyncio.gather(*(issued.create("alice") for _ in range(5)), return_exceptions=True)

    assert sorted(type(each).__name__ for each in made) == ["NameTaken"] * 4 + ["NewKey"]
    assert len(await store.names("keys:digest:")) == 1
    with pytest.raises(NameTaken):
        await issued.create("alice")


async def test_a_revoked_name_can_be_given_again(store: ShakyStore) -> None:
    """To somebody else: what was used before is not theirs."""
    issued = IssuedKeys(store)
    first = await issued.create("alice")
    await issued.revoke("alice")
    [revoked] = await issued.all_keys()
    second = await issued.create("alice")

    assert revoked.revoked is not None and revoked.until <= revoked.revoked
    assert second.key.principal.id != first.key.principal.id
    assert [key.revoked for key in await issued.all_keys()] == [None]
    assert len(await store.names("keys:digest:")) == 1


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "a" * 65, "*", "../x"])
async def test_a_name_is_plain(name: str, store: ShakyStore) -> None:
    """It stands in headers, tables and commands."""
    with pytest.raises(ValueError, match="the name must be"):
        await IssuedKeys(store).create(name)


async def test_after_a_rotation_both_keys_work_for_a_while(
    store: ShakyStore, passing: Time
) -> None:
    """They are one caller, so limits and books go on; the next rotation forgets the first."""
    issued = IssuedKeys(store)
    first = await issued.create("alice", FULL, note="n", signing=True)
    second = await issued.rotate("alice", overlap=60)
    newest, oldest = await issued.all_keys()

    assert second.secret != first.secret
    assert newest == second.key and newest.principal == first.key.principal
    assert newest.signing is not None and newest.note == "n"
    assert newest.replaced_until is None
    assert oldest.replaced_until is not None and oldest.until == oldest.replaced_until

    passing.passes(61)
    await issued.rotate("alice", overlap=60)

    assert len(await issued.all_keys()) == len(await store.names("keys:digest:")) == 2


async def test_a_rotation_never_makes_an_old_key_live_longer(store: ShakyStore) -> None:
    """Its end was told to somebody."""
    issued = IssuedKeys(store)
    await issued.create("alice")
    await issued.rotate("alice", overlap=10)
    before = (await issued.all_keys())[1].until
    await issued.rotate("alice", overlap=1000)

    assert (await issued.all_keys())[2].until == before


async def test_revoking_ends_every_key_of_a_name(store: ShakyStore) -> None:
    """The old one of a rotation too; twice does no harm, and nothing brings it back."""
    issued = IssuedKeys(store)
    await issued.create("alice", signing=True)
    await issued.rotate("alice", overlap=1000)
    await issued.revoke("alice")
    await issued.revoke("alice")

    assert all(key.revoked and key.signing is None for key in await issued.all_keys())
    with pytest.raises(NoSuchKey):
        await issued.rotate("alice", overlap=1)
    with pytest.raises(NoSuchKey):
        await issued.revoke("nobody")


async def test_a_rotation_cannot_slip_past_a_revocation(store: ShakyStore) -> None:
    """Whichever comes first, in the end no key of the name works."""
    issued = IssuedKeys(store)
    await issued.create("alice")
    done = await asyncio.gather(
        *(issued.rotate("alice", overlap=1000) for _ in range(4)),
        issued.revoke("alice"),
        *(issued.rotate("alice", overlap=1000) for _ in range(4)),
        return_exceptions=True,
    )

    assert all(not isinstance(e, Exception) or isinstance(e, NoSuchKey | Contended) for e in done)
    if isinstance(done[4], Contended):
        await issued.revoke("alice")
    keys = await issued.all_keys()
    assert keys and all(key.revoked for key in keys)
    assert len(await store.names("keys:digest:")) == len(keys)


async def test_every_change_changes_the_marker(store: ShakyStore) -> None:
    """By it all workers notice."""
    issued = IssuedKeys(store)
    seen = {await issued.marker()}
    await issued.create("alice")
    seen.add(await issued.marker())
    await issued.rotate("alice", overlap=1)
    seen.add(await issued.marker())
    await issued.revoke("alice")
    seen.add(await issued.marker())

    assert len(seen) == 4


async def test_the_digest_key_is_made_once(store: ShakyStore) -> None:
    """By whichever worker is the first."""
    made = await asyncio.gather(*(IssuedKeys(store).digest_key() for _ in range(10)))

    assert len(set(made)) == 1 and len(made[0]) == 32


PATIENCE = 10.0  # seconds: how busy this machine is, is not what is tested


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_real_stores_keep_them_as_well(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Made through one connection, found through another."""
    url = f"sqlite:///{tmp_path}/store.db"
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("fresh_redis")
        url = server.url
    stores: list[Store] = [
        await asyncio.to_thread(open_store, url, patience=PATIENCE) for _ in range(2)
    ]
    for each in stores:
        await each.start()
    try:
        one, other = map(IssuedKeys, stores)
        await one.create("alice", FULL, signing=True)
        rotated = await other.rotate("alice", overlap=60)
        await one.create("bob")
        await other.revoke("bob")

        assert (await one.named("alice"))[0] == rotated.key
        assert [key.principal.name for key in await other.all_keys()] == ["alice", "alice", "bob"]
        assert await one.marker() == await other.marker()
    finally:
        for each in stores:
            await each.aclose()

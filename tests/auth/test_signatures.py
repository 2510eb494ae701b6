"""Requests that are signed instead of carrying a key."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.directory import Directory
from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.keyring import Keyring
from llmproxy.auth.secrets import signing_secret
from llmproxy.auth.signatures import Signatures, _signature, check_content, string_to_sign
from llmproxy.errors import InvalidRequest, StoreUnavailable, Unauthenticated
from llmproxy.records import Principal
from tests.auth.making import ALICE, Seen, ShakyStore, Time, entries

PAGE = Path(__file__).parents[2] / "docs" / "signing.md"
BODY = b'{"model":"llama"}'
TARGET = "/v1/chat/completions?a=%20b"


def client_of_the_page() -> Callable[..., dict[str, str]]:
    """Return the client that the documentation shows."""
    [source] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), found)
    signed: Callable[..., dict[str, str]] = found["signed_headers"]
    return signed


signed_headers = client_of_the_page()


class Door:
    """A deployment that takes signatures."""

    def __init__(self, store: ShakyStore, given: str = f"alice:{ALICE}") -> None:
        self.issued = IssuedKeys(store)
        ring = Keyring(ConfiguredKeys(entries(given)), issued=Directory(self.issued))
        self.signatures = Signatures(ring.signing, store)

    async def check(
        self, headers: dict[str, str], *, method: str = "POST", target: str = TARGET
    ) -> Principal:
        fields = {name.encode(): value.encode() for name, value in headers.items()}
        given = fields[b"authorization"].partition(b" ")[2]
        return await self.signatures.check(given, fields, method=method, target=target.encode())


@pytest.fixture
def door(store: ShakyStore) -> Door:
    return Door(store)


def signed(name: str = "alice", key: str = ALICE, body: bytes = BODY) -> dict[str, str]:
    return signed_headers(name, key, "POST", TARGET, body)


async def test_the_client_of_the_documentation_gets_in(door: Door) -> None:
    """It is run as it stands there."""
    who = await door.check(signed())

    assert (who.id, who.name, who.method) == ("key:alice", "alice", "hmac")


async def test_an_issued_key_can_sign_when_it_was_made_for_it(door: Door) -> None:
    """During a rotation both can."""
    first = await door.issued.create("bob", signing=True)
    silent = await door.issued.create("eve")
    second = await door.issued.rotate("bob", overlap=60)

    for secret in (first.secret, second.secret):
        assert (await door.check(signed("bob", secret))).name == "bob"
    with pytest.raises(Unauthenticated):
        await door.check(signed("eve", silent.secret))


async def test_a_key_that_another_worker_has_made_signs_at_once(
    door: Door, store: ShakyStore
) -> None:
    """As a plain key does; after a rotation both sign, and a name that was given anew does."""
    other = IssuedKeys(store)
    first = await other.create("blue", signing=True)
    assert (await door.check(signed("blue", first.secret))).name == "blue"

    second = await other.rotate("blue", overlap=60)
    for each in (second, first):
        assert (await door.check(signed("blue", each.secret))).name == "blue"

    await other.revoke("blue")
    third = await other.create("blue", signing=True)
    assert (await door.check(signed("blue", third.secret))).id == third.key.principal.id
    for each in (second, first):
        with pytest.raises(Unauthenticated):
            await door.check(signed("blue", each.secret))


async def test_a_key_of_which_only_a_digest_is_known_cannot_sign(store: ShakyStore) -> None:
    """What it would be checked with cannot be computed."""
    door = Door(store, "alice:sha256:" + "ab" * 32)

    with pytest.raises(Unauthenticated):
        await door.check(signed())


@pytest.mark.parametrize(
    ("found", "put"),
    [
        (r"key=alice", "key=bob"),
        (r"ts=(\d+)", "ts=1"),
        (r"ts=", "ts=1"),
        (r"nonce=", "nonce=-"),
        (r"nonce=.+?,", "nonce=short,"),
        (r"signature=(.)", "signature=g"),
        (r"signature=.*", "signature=" + "0" * 64),
        (r"signature=", "sig="),
        (r"$", ", more=1"),
        (r"key=alice, ", ""),
    ],
)
async def test_nothing_of_a_signature_can_be_changed(found: str, put: str, door: Door) -> None:
    """Every part of the header is signed, or refused by its form."""
    headers = signed()
    headers["authorization"] = re.sub(found, put, headers["authorization"], count=1)

    with pytest.raises(Unauthenticated, match=r"^No valid API key was provided"):
        await door.check(headers)


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "PUT"},
        {"target": "/v1/embeddings?a=%20b"},
        {"target": "/v1/chat/completions"},
        {"target": "/v1/chat/completions?a= b"},
    ],
)
async def test_nothing_of_the_request_can_be_changed(changed: dict[str, str], door: Door) -> None:
    """Method, path and query are signed as they are sent."""
    with pytest.raises(Unauthenticated):
        await door.check(signed(), **changed)


@pytest.mark.parametrize("content", [None, "", "00", "UNSIGNED-PAYLOAD", "AB" * 32])
async def test_the_digest_of_the_body_is_signed(content: str | None, door: Door) -> None:
    """It cannot be left out or exchanged."""
    headers = signed()
    del headers["x-content-sha256"]
    if content is not None:
        headers["x-content-sha256"] = content

    with pytest.raises(Unauthenticated):
        await door.check(headers)


async def test_each_signature_is_good_once(door: Door, store: ShakyStore) -> None:
    """In every worker; another nonce is another request."""
    headers = signed()
    await door.check(headers)

    for each in (door, Door(store)):
        with pytest.raises(Unauthenticated):
            await each.check(headers)
    await door.check(signed())


@pytest.mark.parametrize("shift", [-302, 302])
async def test_a_signature_is_good_for_five_minutes(
    shift: float, door: Door, passing: Time
) -> None:
    """Before and after its time, for clocks differ."""
    headers, late = signed(), signed()
    passing.ahead = shift * 0.98
    await door.check(headers)
    passing.ahead = shift

    with pytest.raises(Unauthenticated):
        await door.check(late)


async def test_a_nonce_is_kept_for_as_long_as_its_signature_is_good(
    door: Door, passing: Time
) -> None:
    """One from a clock that is ahead is good for ten minutes."""
    passing.ahead = -299
    headers = signed()
    await door.check(headers)
    for _ in range(11):
        passing.passes(54)
        with pytest.raises(Unauthenticated):
            await door.check(headers)


async def test_strangers_cannot_fill_the_store(door: Door, store: ShakyStore) -> None:
    """A nonce is kept only for a signature that was right."""
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await door.check(signed(key="sk-somebody-else-1"))

    assert await store.names("nonce") == []
    await door.check(signed())
    assert len(await store.names("nonce")) == 1


async def test_without_the_store_nobody_is_refused_and_nobody_gets_in(
    door: Door, store: ShakyStore
) -> None:
    """Whether a signature was used before cannot be known."""
    store.down = True

    with pytest.raises(StoreUnavailable):
        await door.check(signed())


async def test_a_key_that_has_expired_cannot_sign(store: ShakyStore) -> None:
    """No more than it can be sent."""
    door = Door(store, f"alice:{ALICE};expires=2020-01-01")

    with pytest.raises(Unauthenticated):
        await door.check(signed())


def test_the_body_is_the_one_that_was_signed() -> None:
    """To the last byte; the empty one has a digest as well."""
    for body in (BODY, b""):
        said = {b"x-content-sha256": signed(body=body)["x-content-sha256"].encode()}
        check_content(said, body)
        with pytest.raises(Unauthenticated):
            check_content(said, body + b" ")
    with pytest.raises(Unauthenticated):
        check_content({b"x-content-sha256": b"UNSIGNED-PAYLOAD"}, BODY)


async def test_an_upload_can_be_signed_without_its_content(store: ShakyStore) -> None:
    """Where the key says so, and the signature too."""
    headers = {"x-content-sha256": "UNSIGNED-PAYLOAD"}
    upload = object()
    check_content({b"x-content-sha256": b"UNSIGNED-PAYLOAD"}, upload)
    with pytest.raises(InvalidRequest, match="UNSIGNED-PAYLOAD"):
        check_content({b"x-content-sha256": b"0" * 64}, upload)

    at = str(int(time.time())).encode()
    lines = string_to_sign(b"alice", at, b"n" * 16, b"POST", TARGET.encode(), b"UNSIGNED-PAYLOAD")
    signature = _signature(signing_secret(ALICE.encode()), lines).decode()
    headers["authorization"] = (
        f"LLMPROXY-HMAC-SHA256 key=alice, ts={at.decode()}, nonce={'n' * 16}, signature={signature}"
    )
    with pytest.raises(Unauthenticated):
        await Door(store).check(headers)
    await Door(store, f"alice:{ALICE};unsigned=yes").check(headers)


def test_the_page_shows_no_secret_in_a_header() -> None:
    """A signed request carries nothing that could be used again."""
    Seen(repr(signed())).has_none_of(ALICE)

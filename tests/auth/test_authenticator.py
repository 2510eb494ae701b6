"""Several methods at once: each credential is for one of them, and all fail alike."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator

import pytest

from llmproxy.auth.authenticator import Authenticator
from llmproxy.auth.certificates import Certificates
from llmproxy.auth.claims import claims
from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.directory import Directory
from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.keyring import Keyring
from llmproxy.auth.secrets import new_key
from llmproxy.auth.signatures import Signatures
from llmproxy.auth.tokens import Tokens
from llmproxy.errors import AddressNotAllowed, StoreUnavailable, Unauthenticated
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Role
from llmproxy.types import Header
from tests.auth.issuer import Issuer, issuing
from tests.auth.making import ALICE, FIELDS, Seen, ShakyStore, Time, bearer, call, entries
from tests.auth.test_signatures import BODY, signed_headers

VIEWER = "sk-viewer-8f3KpQz71LmX"
NEARBY = "sk-nearby-8f3KpQz71LmX"
ADMIN = "sk-admin-8f3KpQz71LmX"
GIVEN = f"alice:{ALICE};cert=CN=alice,eye:{VIEWER};role=viewer,n:{NEARBY};networks=10.0.0.0/8"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        yield running


@pytest.fixture
async def everybody(store: ShakyStore, issuer: Issuer) -> AsyncIterator[Authenticator]:
    """All methods of a deployment."""
    certificates = Certificates(TrustedProxies([ipaddress.ip_network("10.0.0.0/8")]))
    configured = ConfiguredKeys(entries(GIVEN), admin_key=ADMIN, certificates=certificates)
    ring = Keyring(configured, issued=Directory(IssuedKeys(store)))
    authenticator = Authenticator(
        keyring=ring,
        tokens=Tokens(
            issuer=issuer.url,
            audience="llmproxy",
            claims=claims("role=role", fields=FIELDS),
            jwks=issuer.jwks,
        ),
        signatures=Signatures(ring.signing, store),
        certificates=certificates,
    )
    yield authenticator
    await authenticator.aclose()


def signed() -> list[Header]:
    made = signed_headers("alice", ALICE, "POST", "/v1/chat/completions", BODY)
    return [(name.encode(), value.encode()) for name, value in made.items()]


CERTIFICATE = [
    (b"x-llmproxy-client-cert-verify", b"SUCCESS"),
    (b"x-llmproxy-client-cert-subject", b"CN=alice"),
]


async def test_every_method_finds_its_callers(
    everybody: Authenticator, store: ShakyStore, issuer: Issuer
) -> None:
    """What a credential looks like says whose it is."""
    new = await IssuedKeys(store).create("bob")
    calls = {
        "key": call(bearer(ALICE)),
        "issued": call((b"x-api-key", new.secret.encode())),
        "token": call(bearer(issuer.token())),
        "signature": call(*signed()),
        "certificate": call(*CERTIFICATE, peer="10.0.0.1"),
    }
    found = {name: await everybody.authenticate(each) for name, each in calls.items()}

    assert {name: (who.method, who.name) for name, who in found.items()} == {
        "key": ("key", "alice"),
        "issued": ("key", "bob"),
        "token": ("jwt", "alice"),
        "signature": ("hmac", "alice"),
        "certificate": ("certificate", "alice"),
    }
    ids = {name: who.id for name, who in found.items()}
    assert ids["key"] == ids["signature"] == ids["certificate"] == "key:alice"
    assert ids["token"] == "jwt:alice" and ids["issued"] == new.key.principal.id
    for each in calls.values():
        Seen(repr(each)).has_none_of(ALICE, new.secret, "CN=alice")


async def test_all_failures_are_told_in_the_same_words(
    everybody: Authenticator, issuer: Issuer
) -> None:
    """Nobody learns how near they were."""
    bad = [
        call(),
        call(bearer("")),
        call(bearer("sk-nobody-knows-this")),
        call(bearer(ALICE[:-1])),
        call(bearer(new_key())),
        call(bearer(issuer.token(aud="x"))),
        call((b"authorization", b"Basic abc")),
        call((b"authorization", b"LLMPROXY-HMAC-SHA256 x")),
        call(*CERTIFICATE),
        call(*CERTIFICATE, bearer("sk-nobody-knows-this"), peer="10.0.0.1"),
    ]
    said = set()
    for each in bad:
        with pytest.raises(Unauthenticated) as refused:
            await everybody.authenticate(each)
        said.add((refused.value.detail, refused.value.headers, refused.value.status))

    assert len(said) == 1


async def test_a_method_that_is_off_opens_nothing(store: ShakyStore, issuer: Issuer) -> None:
    """And a key may look like a token where there are no tokens."""
    dotted = "eyJhbGciOiJub25lIn0.e30.AAAA"
    keys = Keyring(ConfiguredKeys(entries(f"alice:{dotted}")))
    only_keys = Authenticator(keyring=keys)

    assert (await only_keys.authenticate(call(bearer(dotted)))).name == "alice"
    for each in (
        call(*signed()),
        call(bearer(issuer.token())),
        call(*CERTIFICATE, peer="10.0.0.1"),
    ):
        with pytest.raises(Unauthenticated):
            await only_keys.authenticate(each)
    with pytest.raises(Unauthenticated):
        await Authenticator(signatures=Signatures(keys.signing, store)).authenticate(
            call(bearer(dotted))
        )


async def test_a_key_is_good_only_where_it_may_be_used(everybody: Authenticator) -> None:
    """The address is the caller's own, not the proxy's."""
    assert (await everybody.authenticate(call(bearer(NEARBY), client="10.9.9.9"))).name == "n"
    with pytest.raises(AddressNotAllowed):
        await everybody.authenticate(call(bearer(NEARBY), peer="10.0.0.1"))


async def test_who_may_look_and_who_may_change(
    everybody: Authenticator, store: ShakyStore, issuer: Issuer
) -> None:
    """Viewers look, admins do both; whoever is nobody does neither."""
    rows = {
        ADMIN: (Role.ADMIN, True, True),
        VIEWER: (Role.VIEWER, True, False),
        ALICE: (Role.CALLER, False, False),
        NEARBY: (None, False, False),
        "sk-nobody-knows": (None, False, False),
        issuer.token(role="admin").decode(): (Role.ADMIN, True, True),
    }
    for secret, (role, views, administers) in rows.items():
        asked = call(bearer(secret))
        assert await everybody.role(asked) is role
        assert await everybody.may_view(asked) is views
        assert await everybody.may_administer(asked) is administers
    assert await everybody.role(call()) is None

    store.down = True
    with pytest.raises(StoreUnavailable):
        await everybody.may_view(call(bearer(new_key())))


async def test_who_comes_again_is_known_without_a_look_at_the_key(
    everybody: Authenticator, store: ShakyStore
) -> None:
    """By digests alone, which show nothing; neither the clock nor the store makes it wait."""
    new = await IssuedKeys(store).create("bob")
    for secret in (ALICE, ADMIN, new.secret):
        asked = call(bearer(secret))
        found = await everybody.authenticate(asked)
        known = everybody.known(asked)

        assert known is not None
        assert everybody.again(known, asked.client) is found
        Seen(repr(known)).has_none_of(secret, *filter(None, (known.configured, known.issued)))


async def test_what_must_be_checked_each_time_is_not_known(
    everybody: Authenticator, issuer: Issuer
) -> None:
    """A signature is good once, a token until it is over, a certificate for its connection."""
    calls = [call(*signed()), call(bearer(issuer.token())), call(*CERTIFICATE, peer="10.0.0.1")]
    for asked in calls:
        await everybody.authenticate(asked)
        assert everybody.known(asked) is None


async def test_who_is_known_may_be_refused_all_the_same(store: ShakyStore, passing: Time) -> None:
    """When the key is taken away or over, and from an address where it is not good."""
    configured = ConfiguredKeys(entries(GIVEN))
    authenticator = Authenticator(keyring=Keyring(configured, issued=Directory(IssuedKeys(store))))
    alice, nearby = call(bearer(ALICE)), call(bearer(NEARBY), client="10.9.9.9")
    for asked in (alice, nearby):
        await authenticator.authenticate(asked)
    knows_alice, knows_nearby = authenticator.known(alice), authenticator.known(nearby)
    assert knows_alice is not None and knows_nearby is not None

    assert authenticator.again(knows_nearby, "10.9.9.9") is not None
    with pytest.raises(AddressNotAllowed):
        authenticator.again(knows_nearby, "192.0.2.7")
    configured.replace(entries(f"alice:{ALICE};expires=2100-01-01"))
    assert authenticator.again(knows_nearby, "10.9.9.9") is None
    assert authenticator.again(knows_alice, None) is not None
    passing.passes(100 * 366 * 86_400)
    assert authenticator.again(knows_alice, None) is None


async def test_a_revoked_key_is_not_known_for_longer_than_it_would_be_found(
    store: ShakyStore, passing: Time
) -> None:
    """Whoever uses it all the time is refused within five seconds, too."""
    issued = IssuedKeys(store)
    new = await issued.create("bob")
    authenticator = Authenticator(keyring=Keyring(ConfiguredKeys(), issued=Directory(issued)))
    asked = call(bearer(new.secret))
    await authenticator.authenticate(asked)
    known = authenticator.known(asked)
    assert known is not None
    await issued.revoke("bob")

    found = []
    with pytest.raises(Unauthenticated):
        for _ in range(50):
            passing.passes(0.1)
            found.append(
                authenticator.again(known, None) or await authenticator.authenticate(asked)
            )
            await asyncio.sleep(0)
    assert 5 < len(found) < 49
    await authenticator.aclose()

"""Several methods at once: each credential is for one of them, and all fail alike."""

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
from tests.auth.making import ALICE, FIELDS, Seen, ShakyStore, bearer, call, entries
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

"""Tokens of an identity provider: real keys, a real server, and every way to forge one."""

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmproxy.auth import key_sets
from llmproxy.auth.claims import Claims, claims
from llmproxy.auth.tokens import LEEWAY, Tokens
from llmproxy.errors import StoreUnavailable, Unauthenticated
from llmproxy.records import Role
from tests.auth.issuer import Issuer, issuing, private_key, public_jwk
from tests.auth.making import FIELDS, Seen, Time


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        yield running


@asynccontextmanager
async def checking(
    issuer: Issuer, mapping: object = "name=sub", **options: Any
) -> AsyncIterator[Tokens]:
    read: Claims = claims(mapping, fields=FIELDS)
    options = {"audience": "llmproxy", "issuer": issuer.url, **options}
    tokens = Tokens(claims=read, **options)
    try:
        yield tokens
    finally:
        await tokens.aclose()


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("kind", ["RSA", "EC", "OKP"])
async def test_a_token_of_the_issuer_is_a_caller(kind: str, issuer: Issuer) -> None:
    """Its keys are found from the issuer's address alone."""
    issuer.keys = [public_jwk(kind)]
    async with checking(issuer, "name=sub,team=org.name,tier=plan,role=realm.roles") as tokens:
        who = await tokens.find(
            issuer.token(
                kind=kind, org={"name": "red"}, plan="gold", realm={"roles": ["x", "viewer"]}
            )
        )

    assert (who.id, who.name, who.method) == ("jwt:alice", "alice", "jwt")
    assert (who.team, who.tier, who.role) == ("red", "gold", Role.VIEWER)
    assert who.expires is not None and who.expires > time.time()


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://elsewhere"},
        {"iss": None},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": None},
        {"exp": None},
        {"exp": int(time.time()) - 60},
        {"exp": "tomorrow"},
        {"exp": 10**400},
        {"nbf": int(time.time()) + 86_400},
        {"iat": int(time.time()) + 86_400},
        {"sub": None},
        {"sub": ""},
        {"sub": "a" * 2000},
        {"number": 1},
        {"head": {"kid": "another"}},
        {"head": {"kid": "EC-0"}},
        {"algorithm": "PS512"},
        {"head": {"crit": ["exp"], "exp": 1}},
    ],
    # A name that does not change with the time: the suite is spread over several processes.
    ids=lambda changed: "_".join(changed),
)
async def test_a_token_that_is_not_for_us_is_refused(
    changed: dict[str, Any], issuer: Issuer
) -> None:
    """In the same words as a bad key."""
    issuer.keys = [{**public_jwk("RSA"), "alg": "RS256"}, public_jwk("EC")]
    async with checking(issuer) as tokens:
        await tokens.find(issuer.token(aud=["other", "llmproxy"], nbf=int(time.time()) + 10))
        with pytest.raises(Unauthenticated, match=r"^No valid API key was provided\.$") as refused:
            await tokens.find(issuer.token(**changed))

    assert refused.value.__suppress_context__ or refused.value.__context__ is None


async def test_an_end_that_an_issuer_writes_as_text_is_an_end(
    issuer: Issuer, passing: Time
) -> None:
    """PyJWT takes it for one, and so nothing behind it may stumble over it."""
    async with checking(issuer) as tokens:
        token = issuer.token(exp=str(int(time.time()) + 100))
        assert (await tokens.find(token)).name == "alice"
        passing.passes(100 + LEEWAY + 1)
        with pytest.raises(Unauthenticated):
            await tokens.find(token)


async def test_no_algorithm_is_talked_into(issuer: Issuer) -> None:
    """`none`, a shared secret made of the public key, keys inside of the token."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    body = {"iss": issuer.url, "aud": "llmproxy", "sub": "alice", "exp": time.time() + 600}
    pem = (
        private_key("RSA")
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    forged = []
    for algorithm in ("none", "None", "HS256", "", "RS256"):
        for secret in (pem, b"", json.dumps(public_jwk("RSA")).encode()):
            head = part({"alg": algorithm, "typ": "JWT", "kid": "RSA-0"})
            signed = f"{head}.{part(body)}"
            mac = hmac.digest(secret or b"x", signed.encode(), hashlib.sha256)
            forged += [f"{signed}.{part(mac)}", f"{signed}.AA"]
    mine = public_jwk("RSA", 1)
    forged.append(issuer.token(number=1, head={"kid": "RSA-0", "jwk": mine}).decode())
    forged.append(issuer.token(number=1, head={"kid": "RSA-1", "jku": issuer.url}).decode())
    forged += ["eyJ.a.b", "eyJhIjoxfQ.e30.AA", f"{part({'alg': ['RS256']})}.e30.AA"]
    forged += [f"{part({'alg': 'RS256', 'kid': 5})}.e30.AA"]
    issuer.keys.append({"kty": "oct", "kid": "shared", "k": part(b"s" * 32)})
    async with checking(issuer, jwks=issuer.jwks) as tokens:
        await tokens.find(issuer.token())
        for token in forged:
            with pytest.raises(Unauthenticated):
                await tokens.find(token.encode())


@pytest.mark.parametrize("algorithms", [["HS256"], ["none"], ["RS256", "HS512"], [], ["rs256"]])
def test_only_algorithms_with_public_keys_can_be_allowed(algorithms: list[str]) -> None:
    """A mistake in the configuration stops the start."""
    with pytest.raises(ValueError, match="must be one or more of RS256"):
        Tokens(
            issuer="https://i",
            audience="a",
            claims=claims("name=sub", fields=FIELDS),
            algorithms=algorithms,
        )


@pytest.mark.parametrize(("issuer_url", "audience"), [("", "a"), ("https://i", ""), ("i", [])])
def test_an_issuer_and_an_audience_are_needed(issuer_url: str, audience: Any) -> None:
    """Else a token that was made for somebody else would do."""
    with pytest.raises(ValueError, match="are needed"):
        Tokens(issuer=issuer_url, audience=audience, claims=claims("name=sub", fields=FIELDS))


async def test_an_algorithm_that_is_not_pinned_is_refused(issuer: Issuer) -> None:
    """Though the key could do it."""
    async with checking(issuer, jwks=issuer.jwks, algorithms=["ES256"]) as tokens:
        with pytest.raises(Unauthenticated):
            await tokens.find(issuer.token())


async def test_a_good_token_is_remembered_until_it_ends(issuer: Issuer, passing: Time) -> None:
    """The second time nothing suspends."""
    async with checking(issuer, jwks=issuer.jwks) as tokens:
        token = issuer.token(exp=int(time.time()) + 100)
        who = await tokens.find(token)
        asking = tokens.find(token)
        with pytest.raises(StopIteration) as returned:
            asking.send(None)
        assert returned.value.value is who
        passing.passes(131)
        with pytest.raises(Unauthenticated):
            await tokens.find(token)
        Seen(repr(tokens._known)).has_none_of(token)


async def test_a_thousand_at_once_are_one_question(issuer: Issuer) -> None:
    """For the keys of the issuer."""
    async with checking(issuer) as tokens:
        made = [issuer.token(sub=f"u{number}") for number in range(10)]
        found = await asyncio.gather(*(tokens.find(made[n % 10]) for n in range(1000)))

    assert {who.name for who in found} == {f"u{number}" for number in range(10)}
    assert issuer.asked == {"/.well-known/openid-configuration": 1, "/keys": 1}


async def test_a_new_key_is_fetched_when_a_token_names_it(issuer: Issuer, passing: Time) -> None:
    """But made up names do not make us ask again and again."""
    async with checking(issuer, jwks=issuer.jwks) as tokens:
        await tokens.find(issuer.token())
        issuer.keys = [public_jwk("RSA"), public_jwk("RSA", 1)]
        passing.passes(key_sets.PAUSE + 1)
        assert (await tokens.find(issuer.token(number=1))).name == "alice"
        assert issuer.asked["/keys"] == 2
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await tokens.find(issuer.token(head={"kid": f"made-up-{number}"}))
        assert issuer.asked["/keys"] == 2


async def test_a_key_that_was_taken_away_opens_nothing(issuer: Issuer, passing: Time) -> None:
    """Not for a token that was good before either, once the set was read again."""
    async with checking(issuer, jwks=issuer.jwks) as tokens:
        token = issuer.token()
        await tokens.find(token)
        issuer.keys = [public_jwk("RSA", 1)]
        passing.passes(key_sets.KEEP + 1)
        await tokens.find(token)  # begins to read, and is not held up
        await asyncio.gather(*tokens._keys._flight._flying.values())
        with pytest.raises(Unauthenticated):
            await tokens.find(token)


async def test_while_the_issuer_is_away_its_keys_go_on_for_an_hour(
    issuer: Issuer, passing: Time, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is refused for it: about tokens that nobody can check there is no verdict."""
    async with checking(issuer, jwks=issuer.jwks) as tokens:
        token = issuer.token(exp=int(time.time()) + 100_000)
        await tokens.find(token)
        issuer.status = 500
        for _ in range(10):
            passing.passes(350)
            assert (await tokens.find(token)).name == "alice"
            await asyncio.gather(*tokens._keys._flight._flying.values())
        fresh = issuer.token(sub="bob", exp=int(time.time()) + 100_000)
        assert (await tokens.find(fresh)).name == "bob"
        with pytest.raises(StoreUnavailable):
            await tokens.find(issuer.token(head={"kid": "unknown"}, exp=int(time.time()) + 9999))
        passing.passes(200)
        with pytest.raises(StoreUnavailable) as refused:
            await tokens.find(token)
        issuer.status = 200
        passing.passes(3)
        with pytest.raises(StoreUnavailable) as refused:
            await tokens.find(token)
        assert (b"retry-after", b"7") in refused.value.headers
        passing.passes(7)
        assert (await tokens.find(token)).name == "alice"
    said = [record.getMessage() for record in caplog.records if record.name == "llmproxy"]

    assert said == ["The keys of the tokens' issuer could not be read: it answered 500"]
    Seen(caplog.text).has_none_of(token)


@pytest.mark.parametrize(
    ("raw", "status", "configuration"),
    [
        (b"not json", 200, {}),
        (b"[]", 200, {}),
        (b'{"keys": 5}', 200, {}),
        (b'{"keys": []}', 200, {}),
        (b'{"keys": [{"kty": "oct", "k": "AAAA"}, 5, {"kty": "RSA"}]}', 200, {}),
        (json.dumps({"keys": [public_jwk("RSA"), "x" * key_sets.LARGEST]}).encode(), 200, {}),
        (None, 404, {}),
        (None, 302, {}),
        (None, 200, {"issuer": "http://127.0.0.1"}),
        (None, 200, {"jwks_uri": 5}),
        (None, 200, {"jwks_uri": "file:///etc/passwd"}),
        (None, 200, {"jwks_uri": "http://127.0.0.1:1/keys"}),
    ],
)
async def test_an_issuer_that_says_nonsense_is_one_that_is_away(
    raw: bytes | None, status: int, configuration: dict[str, Any], issuer: Issuer
) -> None:
    """Never a verdict about somebody's token."""
    issuer.raw, issuer.status, issuer.configuration = raw, status, configuration
    where = None if configuration else issuer.jwks
    async with checking(issuer, jwks=where) as tokens:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await tokens.find(issuer.token())


async def test_an_issuer_that_does_not_answer_is_waited_for_briefly(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by all together."""
    monkeypatch.setattr(key_sets, "TIMEOUT", 0.05)
    issuer.hold = asyncio.Event()
    async with checking(issuer, jwks=issuer.jwks) as tokens:
        done = await asyncio.gather(
            *(tokens.find(issuer.token()) for _ in range(20)), return_exceptions=True
        )
        assert {type(each) for each in done} == {StoreUnavailable}
        assert issuer.asked["/keys"] == 1
        issuer.hold.set()


async def test_the_keys_may_stand_in_a_file(issuer: Issuer, tmp_path: Path) -> None:
    """A key without a name serves tokens that name none, if it is the only one."""
    path = tmp_path / "jwks.json"
    shown = {name: value for name, value in public_jwk("EC").items() if name != "kid"}
    path.write_text(json.dumps({"keys": [shown]}))
    async with checking(issuer, jwks=str(path)) as tokens:
        assert (await tokens.find(issuer.token(kind="EC", head={"kid": None}))).name == "alice"
    async with checking(issuer, jwks=str(tmp_path / "missing")) as tokens:
        with pytest.raises(StoreUnavailable):
            await tokens.find(issuer.token(kind="EC"))
    assert not issuer.asked


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"models": []},
        {"models": "llama|"},
        {"models": 5},
        {"models": {"a": 1}},
        {"models": [""]},
    ],
    ids=repr,
)
async def test_a_restriction_that_is_missing_is_not_freedom(
    told: dict[str, Any], issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    """Where models come from tokens, a token without them opens nothing."""
    async with checking(issuer, "models=models", jwks=issuer.jwks) as tokens:
        who = await tokens.find(issuer.token(models=["llama-*", "phi"]))
        assert who.models == ("llama-*", "phi")
        token = issuer.token(**told)
        with pytest.raises(Unauthenticated):
            await tokens.find(token)
    Seen(caplog.text).has_none_of(token, "alice")


@pytest.mark.parametrize("given", ["caller", "root", "ADMIN", [], ["x"], {"admin": True}, 5, True])
async def test_an_unknown_role_is_the_least(given: object, issuer: Issuer) -> None:
    """Only the very words count."""
    async with checking(issuer, "role=role", jwks=issuer.jwks) as tokens:
        assert (await tokens.find(issuer.token(role=given))).role is Role.CALLER
        assert (await tokens.find(issuer.token(role=["viewer", "admin"]))).role is Role.ADMIN


def test_the_mapping_is_read_and_checked() -> None:
    """Names of claims may have dots in them, and a path may go into nested ones."""
    given = {"name": "https://x.example/name", "team": "a.b"}
    read = claims(given, fields=FIELDS)
    who = read.principal({"https://x.example/name": 17, "a": {"b": "red"}, "exp": 1})

    assert (who.id, who.team) == ("jwt:17", "red")
    assert claims("", fields=FIELDS).mapping == {"name": "sub"}
    assert claims('{"team": "org"}', fields=FIELDS).mapping == {"name": "sub", "team": "org"}
    for wrong in ("teem=org", "team", "team=", "expires=exp", "id=sub", "{", 5, [5]):
        with pytest.raises(ValueError, match=r"must|not valid JSON"):
            claims(wrong, fields=FIELDS)


def test_without_the_library_the_message_says_what_to_install() -> None:
    """Nothing else of the package needs it."""
    program = (
        "import sys; sys.modules['jwt'] = None\n"
        "import llmproxy.auth.authenticator, llmproxy.middleware.auth\n"
        "import llmproxy.auth.tokens"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert "pip install llmproxy[jwt]" in done.stderr.splitlines()[-1]

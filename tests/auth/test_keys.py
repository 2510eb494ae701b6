"""The grammar of configured keys, and that no message of it shows one."""

import base64
import hashlib
import math
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.auth.configured import ADMIN, ConfiguredKeys
from llmproxy.auth.fields import moment
from llmproxy.auth.samples import is_sample
from llmproxy.auth.secrets import (
    PREFIX,
    could_be_issued,
    digest_of,
    fingerprint,
    new_key,
    sha256_of,
    signing_secret,
)
from llmproxy.records import Budget, Limit, Role
from tests.auth.making import ALICE, Seen, Time, entries

BOB = "sk-bob-q7Vd93LmXzT2"


def found(given: object, secret: str, **environ: str) -> object:
    return ConfiguredKeys(entries(given, **environ)).find(sha256_of(secret.encode()))


@pytest.mark.parametrize(
    "given",
    [
        f"alice:{ALICE},bob:{BOB}",
        f" alice : {ALICE} , bob:{BOB}, ",
        [f"alice:{ALICE}", f"bob:{BOB}"],
        [{"name": "alice", "key": ALICE}, {"name": "bob", "key": BOB}],
        {"alice": ALICE, "bob": {"key": BOB}},
        f'{{"alice": "{ALICE}", "bob": "{BOB}"}}',
        f'["alice:{ALICE}", {{"name": "bob", "key": "{BOB}"}}]',
        f"alice:sha256:{hashlib.sha256(ALICE.encode()).hexdigest()},bob:env:BOBS_KEY",
    ],
)
def test_keys_are_read_in_every_form(given: object) -> None:
    """Text from the environment, JSON, and what TOML or Python give."""
    names = [entry.principal.name for entry in entries(given, BOBS_KEY=BOB)]
    keys = ConfiguredKeys(entries(given, BOBS_KEY=BOB))

    assert names == ["alice", "bob"]
    for secret, name in ((ALICE, "alice"), (BOB, "bob")):
        who = keys.find(sha256_of(secret.encode()))
        assert who is not None and who.name == name and who.id == f"key:{name}"
    assert keys.find(sha256_of(b"sk-somebody-else")) is None


def test_an_entry_has_all_the_fields_of_a_key() -> None:
    """Options after `;`, lists with `|`."""
    [entry] = entries(
        f"alice:{ALICE};team=red;tier=gold;tags=a|b;role=viewer;models=llama-*|phi;routes=chat"
        ";networks=10.0.0.0/8|192.0.2.7;limits=60 req/min|8 concurrent;budget=10 usd/day"
        ";weight=2.5;priority=3;max_tokens=100;expires=2030-01-31;note=for the demo;unsigned=yes"
        ";cert=CN=alice"
    )
    who = entry.principal

    assert (who.team, who.tier, who.tags) == ("red", "gold", frozenset("ab"))
    assert who.role is Role.VIEWER
    assert (who.models, who.routes) == (("llama-*", "phi"), ("chat",))
    assert [str(network) for network in who.networks] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert who.limits == (Limit(60, "req", 60), Limit(8, "concurrent"))
    assert who.budgets == (Budget(10, "usd", "day"),)
    assert (who.weight, who.priority, who.max_tokens) == (2.5, 3, 100)
    assert who.expires == moment("2030-01-31") == 1896048000.0
    assert (entry.note, entry.unsigned, entry.certificate) == ("for the demo", True, "alice")


@pytest.mark.parametrize(
    "secret",
    [
        *("", " ", "changeme", "change-me", "sk-xxx", "sk-xxxxxxxxxxxx", "your-key-here"),
        *("sk-your-key", "your-api-key-here", "<your key>", "${API_KEY}", "sk-1234567890"),
        *("password", "short-1", "sk-llmproxy-changeme", "sk-test", "0000000000000000"),
        *("my_secret_key", "two words here", "schlüssel-schlüssel", "a" * 513),
        *("sha256:abcdef", "env:NOT_SET", "env:not a name"),
    ],
)
def test_a_key_that_everybody_knows_is_refused_and_not_shown(secret: str) -> None:
    """Nor one that cannot be sent, is too short, or is not there."""
    with pytest.raises(ValueError, match=r"^entry 1: ") as refused:
        entries([{"name": "alice", "key": secret}])

    if len(secret) > 6 and not secret.startswith(("env:", "sha256:")):
        assert secret not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"{ALICE}", "entry 1: must be written name:key"),
        (f"alice:{ALICE},alice:{BOB}", "two entries have the same name"),
        (f"alice:{ALICE},bob:{ALICE}", "two entries have the same key"),
        (f"a:{ALICE};cert=CN=x,b:{BOB};cert=x", "two entries have the same certificate"),
        (f"alice:{ALICE};teem=red", "did you mean `team`"),
        (f"alice:{ALICE};{BOB}=x", "no option of this name"),
        (f"alice:{ALICE};{BOB}", "must be written option=value"),
        (f"alice:{ALICE};team=a;team=b", "given twice"),
        (f"alice:{ALICE};role={BOB}", "`role` must be one of caller, viewer, admin"),
        (f"alice:{ALICE};networks={BOB}", "`networks` must be"),
        (f"alice:{ALICE};limits={BOB}", "`limits`"),
        (f"alice:{ALICE};budget={BOB}", "`budget`"),
        (f"alice:{ALICE};models=", "`models` must be a list"),
        (f"alice:{ALICE};expires={BOB}", "`expires` must be a date"),
        (f"alice:{ALICE};weight=0", "`weight` must be"),
        (f"alice:{ALICE};max_tokens=1.5", "`max_tokens` must be a whole number"),
        (f"alice:{ALICE};unsigned={BOB}", "`unsigned` must be yes or no"),
        (f"{ALICE}{ALICE}{ALICE}{ALICE}:x", "the name must be"),
        (f'["alice:{ALICE}"', "not valid JSON"),
        (17, "must be a list"),
        ([17], "entry 1: must be text or a table"),
        (f"ok:{BOB},a:changeme,b:changeme", "entry 2: .*; entry 3: "),
    ],
)
def test_a_mistake_is_named_without_what_may_be_secret(given: object, said: str) -> None:
    """Entries are named by number: the name may be the key."""
    with pytest.raises(ValueError, match=said) as refused:
        entries(given)

    Seen(str(refused.value)).has_none_of(ALICE, BOB)


def test_no_record_shows_a_key() -> None:
    """Neither the key nor what could stand for it."""
    read = entries(f"alice:{ALICE}")
    secrets = (ALICE, sha256_of(ALICE.encode()), signing_secret(ALICE.encode()))

    Seen(repr(read) + repr(ConfiguredKeys(read, admin_key=BOB).signing("alice"))).has_none_of(
        *secrets, BOB
    )


def test_a_key_ends_when_it_expires(passing: Time) -> None:
    """Not when the file is read the next time."""
    given = f"alice:{ALICE};expires=2026-12-01T00:00:00Z"
    keys = ConfiguredKeys(entries(given))
    passing.ahead = 1796083200 - 10 - time.time()

    assert keys.find(sha256_of(ALICE.encode())) is not None

    passing.passes(11)

    assert keys.find(sha256_of(ALICE.encode())) is None


def test_the_admin_key_is_an_admin_whatever_the_list_says() -> None:
    """And stays one when the list is replaced."""
    keys = ConfiguredKeys(entries(f"alice:{ALICE}"), admin_key=BOB)
    keys.replace(())

    assert keys.find(sha256_of(BOB.encode())) is ADMIN
    assert keys.find(sha256_of(ALICE.encode())) is None
    assert ADMIN.role is Role.ADMIN


def test_a_caller_may_be_known_by_certificate_alone() -> None:
    """Then there is no key at all."""
    [entry] = entries("alice:;cert=CN=alice")

    assert entry.sha256 is entry.signing is None


@given(st.integers(1, 63))
def test_a_beginning_is_not_the_key(length: int) -> None:
    """However much of it is right."""
    key = new_key()
    changed = key[:length] + ("a" if key[length % len(key)] != "a" else "b") + key[length + 1 :]

    assert found(f"alice:{key}", key) is not None
    if changed != key:
        assert found(f"alice:{key}", changed) is None
    assert found(f"alice:{key}", key[:length]) is None if length < len(key) else True


def test_a_new_key_can_be_recognised_and_checked_without_a_lookup() -> None:
    """43 characters of chance between a prefix and a checksum."""
    key = new_key()

    assert key.startswith(PREFIX) and len(key) == len(PREFIX) + 43 + 6
    assert could_be_issued(key.encode())
    assert not is_sample(key)
    assert len({new_key() for _ in range(100)}) == 100


@given(st.integers(0, 60), st.sampled_from("aZ0-_*"))
def test_a_mistyped_key_needs_no_lookup(place: int, char: str) -> None:
    """One wrong character is always noticed."""
    key = PREFIX + "Qm4" * 14 + "x"
    key += base64.urlsafe_b64encode(zlib.crc32(key.encode()).to_bytes(4, "big"))[:6].decode()
    typed = key[:place] + char + key[place + 1 :]

    assert could_be_issued(key.encode())
    assert could_be_issued(typed.encode()) == (typed == key)


def test_a_fingerprint_tells_little() -> None:
    """Less than 24 bits, and another one under another digest key."""
    one, other = (digest_of(sha256_of(b"k" * 20), bytes([each]) * 32) for each in (1, 2))

    assert len({digest_of(sha256_of(b"k%d" % n), bytes(32)) for n in range(2000)}) == 2000
    assert len(fingerprint(one)) * math.log2(16) < 24
    assert fingerprint(one) != fingerprint(other)

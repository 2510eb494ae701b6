"""Callers who are known by a certificate that a proxy of ours has verified."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.auth.certificates import Certificates, certificate, common_name
from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.records import Principal
from tests.auth.making import entries

SHA1 = "5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8"
TRUSTED = TrustedProxies([ipaddress.ip_network("10.0.0.0/8"), "unix"])


def find(*, peer: str | None = "10.0.0.1", repeated: bool = False, **said: str) -> Principal | None:
    certificates = Certificates(TRUSTED)
    ConfiguredKeys(
        entries(f"alice:;cert={SHA1},bob:;cert=CN=bob.example,odd:;cert=CN={SHA1[::-1]}"),
        certificates=certificates,
    )
    fields = {
        b"x-llmproxy-client-cert-" + name.encode(): value.encode()
        for name, value in {"verify": "SUCCESS", **said}.items()
    }
    return certificates.find(peer, fields, repeated=repeated)


def name(found: Principal | None) -> str | None:
    return found.name if found is not None else None


def test_a_fingerprint_or_a_common_name_is_somebody() -> None:
    """As nginx writes them, or as people do."""
    colons = ":".join(SHA1[at : at + 2] for at in range(0, 40, 2)).upper()

    assert name(find(fingerprint=SHA1)) == name(find(fingerprint=colons)) == "alice"
    assert name(find(subject="CN=bob.example,OU=a,O=b")) == "bob"
    assert name(find(peer=None, subject="O=b,cn=bob.example")) == "bob"
    found = find(fingerprint=SHA1)
    assert found is not None and found.method == "certificate"
    assert certificate(colons) == certificate(SHA1) == SHA1


@pytest.mark.parametrize("peer", ["192.0.2.7", "not-an-address"])
def test_only_a_trusted_proxy_is_believed(peer: str) -> None:
    """From anybody else these headers are just text."""
    assert find(peer=peer, fingerprint=SHA1) is None


@pytest.mark.parametrize("verify", ["NONE", "FAILED:expired", "", "success"])
def test_only_what_was_verified_counts(verify: str) -> None:
    """nginx sends the fingerprint of a bad certificate too."""
    assert find(verify=verify, fingerprint=SHA1) is None


def test_headers_that_came_twice_name_nobody() -> None:
    """One of them may be the caller's own."""
    assert find(repeated=True, fingerprint=SHA1) is None


@pytest.mark.parametrize(
    "subject",
    [
        r"O=x\,CN=bob.example",
        "CN=bob.example,CN=mallory",
        "CN=mallory+CN=bob.example",
        "OU=CN=bob.example",
        "CN=bob.example.org",
        f"CN={SHA1}",
        f"CN={SHA1[::-1]}",
        "",
        "bob.example",
    ],
)
def test_nobody_is_named_by_a_trick(subject: str) -> None:
    """What else stands in a subject is the applicant's to choose."""
    assert find(subject=subject) is None


def test_escapes_in_a_name_are_read() -> None:
    """RFC 2253: a backslash before a character, or two hex digits."""
    assert common_name(r"CN=Smith\, John,O=x") == "Smith, John"
    assert common_name(r"CN=a\2Cb") == "a,b"


@given(st.text(max_size=40))
def test_any_subject_is_read_without_harm(subject: str) -> None:
    """It ends, and says a name or nothing."""
    assert common_name(subject) is None or "=" in subject

"""Which credential a request carries, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.auth.credentials import Kind, read_credential
from llmproxy.errors import InvalidRequest, Unauthenticated
from llmproxy.types import Header

KEY = b"sk-something-secret"
TOKEN = b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"


def read(*headers: Header) -> object:
    return read_credential(list(headers), dict(headers))


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer " + KEY),
        (b"authorization", b"bearer " + KEY),
        (b"authorization", b"BEARER  " + KEY + b" "),
        (b"x-api-key", KEY),
        (b"api-key", KEY),
    ],
    ids=["bearer", "lower", "spaces", "x-api-key", "api-key"],
)
def test_a_key_is_found_where_clients_send_it(header: Header) -> None:
    """As OpenAI's, Anthropic's and Azure's clients do."""
    assert read((b"host", b"h"), header) == (Kind.KEY, KEY)


def test_nothing_is_nothing() -> None:
    """Who may call without a credential is decided elsewhere."""
    assert read((b"host", b"h"), (b"cookie", KEY)) is None


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"api-key"])
@pytest.mark.parametrize("second", [KEY, b"another"])
def test_the_same_header_twice_is_refused(name: bytes, second: bytes) -> None:
    """Even with the same value: two readers could take different ones."""
    with pytest.raises(InvalidRequest):
        read((name, b"Bearer " + KEY), (name, b"Bearer " + second))


def test_another_header_twice_is_nobodys_business_here() -> None:
    """Cookies and Via come more than once."""
    assert read((b"via", b"a"), (b"via", b"b"), (b"api-key", KEY)) == (Kind.KEY, KEY)


def test_two_that_agree_are_one() -> None:
    """Some clients send the same key in two headers."""
    found = read((b"authorization", b"Bearer " + KEY), (b"x-api-key", KEY), (b"api-key", KEY))

    assert found == (Kind.KEY, KEY)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + KEY), (b"x-api-key", b"another")],
        [(b"authorization", b"Bearer " + KEY), (b"api-key", b"another")],
        [(b"x-api-key", KEY), (b"api-key", b"another")],
        [(b"x-api-key", KEY), (b"authorization", b"LLMPROXY-HMAC-SHA256 key=a")],
        [(b"x-api-key", KEY), (b"authorization", b"Bearer ")],
    ],
)
def test_two_that_disagree_are_refused(headers: list[Header]) -> None:
    """Whoever takes the first and whoever takes the last would see different callers."""
    with pytest.raises(InvalidRequest):
        read(*headers)


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b""),
        (b"authorization", b"Bearer"),
        (b"authorization", b"Bearer "),
        (b"authorization", KEY),
        (b"authorization", b"Basic " + KEY),
        (b"authorization", b"Bearer\t" + KEY),
        (b"authorization", b"Bearer " + KEY + b"\r\nx: y"),
        (b"authorization", b"Bearer " + KEY + b"\0"),
        (b"authorization", b"Bearer two words"),
        (b"authorization", "Bearer schlüssel".encode()),
        (b"authorization", b"Bearer " + b"a" * 513),
        (b"authorization", b"Bearer " + b"a" * 1024 * 1024),
        (b"authorization", b"Bearer eyJ" + b"a" * 16 * 1024 + b".a.a"),
        (b"authorization", b"LLMPROXY-HMAC-SHA256 " + b"a" * 513),
        (b"x-api-key", b""),
        (b"x-api-key", b"\xff"),
    ],
    ids=lambda header: repr(header[1][:32]),
)
def test_what_cannot_be_a_credential_is_refused_here(header: Header) -> None:
    """In the words that every refusal has."""
    with pytest.raises(Unauthenticated, match=r"^No valid API key was provided\.$") as refused:
        read(header)

    assert refused.value.headers == ((b"www-authenticate", b"Bearer"),)


def test_three_dotted_parts_may_be_a_token() -> None:
    """A longer one than any key may be."""
    long = TOKEN + b"A" * 8000

    assert read((b"authorization", b"Bearer " + TOKEN)) == (Kind.TOKEN, TOKEN)
    assert read((b"authorization", b"Bearer " + long)) == (Kind.TOKEN, long)
    assert read((b"x-api-key", b"a.b.c")) == (Kind.KEY, b"a.b.c")


def test_a_signature_has_a_scheme_of_its_own() -> None:
    """Written in any case."""
    assert read((b"authorization", b"llmproxy-HMAC-sha256 key=a")) == (Kind.SIGNATURE, b"key=a")


@given(st.binary(max_size=64), st.sampled_from([b"authorization", b"x-api-key", b"api-key"]))
def test_whatever_is_sent_is_read_or_refused(value: bytes, name: bytes) -> None:
    """No value makes anything else happen, and what is read is plain ASCII."""
    try:
        found = read((name, value))
    except Unauthenticated:
        return
    assert isinstance(found, tuple)
    assert found[1].isascii()
    assert found[0] is Kind.SIGNATURE or (found[1] and not set(found[1]) & set(b" \r\n\0\x7f"))

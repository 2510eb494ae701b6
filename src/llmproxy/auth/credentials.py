"""Which credential a request carries.

Rule 1: `Authorization: Bearer`, `X-API-Key` and `api-key` are read, and nothing else is; a key
        in a query would stand in every log on its way.
Rule 2: the same header twice, or two that disagree, is 400: two readers could take different
        ones for the caller.
Rule 3: what cannot be a credential (another scheme, nothing, too long, anything but printable
        ASCII) is refused here, without a look at any store.
Rule 4: every failure is told in the same words, so that none of them tells anything.
"""

import re
from collections.abc import Mapping
from enum import Enum

from llmproxy.errors import InvalidRequest, Unauthenticated
from llmproxy.types import Header

LONGEST_KEY = 512  # bytes
LONGEST_TOKEN = 16 * 1024  # bytes; tokens with many groups in them get large
SCHEME = b"llmproxy-hmac-sha256"  # in lower case

_KEY = re.compile(rb"[\x21-\x7e]{1,512}")
_TOKEN = re.compile(rb"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_HEADERS = (b"authorization", b"x-api-key", b"api-key")
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)


class Kind(Enum):
    """What a credential looks like; whether it is a good one is another question."""

    KEY = "key"
    TOKEN = "token"  # three parts, as a JWT has them; may be a key nevertheless
    SIGNATURE = "signature"


Credential = tuple[Kind, bytes]


def unauthenticated() -> Unauthenticated:
    """Return the one answer to every credential that opens nothing."""
    return Unauthenticated("No valid API key was provided.", headers=_CHALLENGE)


def read_credential(headers: list[Header], fields: Mapping[bytes, bytes]) -> Credential | None:
    """Return the credential of a request; None when it carries none.

    `fields` is the same head as a mapping, which every request has already.
    """
    if len(fields) != len(headers):
        _refuse_repeated(headers)
    authorization = fields.get(b"authorization")
    key, same_key = fields.get(b"x-api-key"), fields.get(b"api-key")
    if authorization is None:
        if key is None:
            key, same_key = same_key, None
        if key is None:
            return None
        return _judged(_one_of(key, same_key))
    scheme, _, rest = authorization.partition(b" ")
    if scheme != b"Bearer":
        scheme = scheme.lower()
    if scheme == SCHEME:
        if key is not None or same_key is not None:
            raise _disagreeing()
        if len(rest) > LONGEST_KEY:
            raise unauthenticated()
        return Kind.SIGNATURE, rest
    if scheme not in (b"Bearer", b"bearer"):
        raise unauthenticated()
    if key is same_key is None:
        return _judged(rest)
    return _judged(_one_of(_one_of(rest, key), same_key))


def _one_of(value: bytes, other: bytes | None) -> bytes:
    if other is not None and other.strip(b" ") != value.strip(b" "):
        raise _disagreeing()
    return value


def _judged(value: bytes) -> Credential:
    value = value.strip(b" ")
    if value[:3] == b"eyJ" and len(value) <= LONGEST_TOKEN and _TOKEN.fullmatch(value):
        return Kind.TOKEN, value
    if _KEY.fullmatch(value):
        return Kind.KEY, value
    raise unauthenticated()


def _refuse_repeated(headers: list[Header]) -> None:
    names = [name for name, _ in headers if name in _HEADERS]
    if len(set(names)) != len(names):
        raise InvalidRequest("The request carries the same credential header twice.")


def _disagreeing() -> InvalidRequest:
    return InvalidRequest("The request carries two different credentials.")

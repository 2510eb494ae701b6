"""Requests that are signed with a key instead of carrying it.

    Authorization: LLMPROXY-HMAC-SHA256 key=<name>, ts=<unix seconds>, nonce=<16..64 url-safe
        characters>, signature=<hex>
    x-content-sha256: <hex SHA-256 of the body, or UNSIGNED-PAYLOAD>

What is signed are these lines, joined by a line feed, with nothing after the last: the name of
the scheme, the key's name, the time, the nonce, the method, the target as it is sent (path and
query) and the value of `x-content-sha256`. The secret is SHA-256 of "llmproxy-hmac:" + key, so
that whoever can check signatures still does not know the key.

Rule 1: a signature is good for `WINDOW` before and after its time, and once.
Rule 2: the nonce is spent only after the signature was found to be right, so that strangers
        cannot fill the store.
Rule 3: the body is compared when it has been read. What is read as a whole is always compared;
        an upload may go unsigned where its key says `unsigned=yes`.
"""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Mapping
from typing import Protocol

from llmproxy import clock
from llmproxy.auth.configured import SigningKey
from llmproxy.auth.credentials import unauthenticated
from llmproxy.auth.lookups import keys_unavailable
from llmproxy.errors import InvalidRequest
from llmproxy.records import Principal
from llmproxy.store.interface import Records, Unavailable, meter_name

SCHEME = "LLMPROXY-HMAC-SHA256"
WINDOW = 300  # seconds
UNSIGNED = b"UNSIGNED-PAYLOAD"
CONTENT = b"x-content-sha256"

_FORM = re.compile(
    rb"key=([A-Za-z0-9][A-Za-z0-9._@-]{0,63}), ?ts=([0-9]{1,12}), ?"
    rb"nonce=([A-Za-z0-9_-]{16,64}), ?signature=([0-9a-f]{64})"
)
_CONTENT_FORM = re.compile(rb"[0-9a-f]{64}|UNSIGNED-PAYLOAD")


class FindKeys(Protocol):
    """Tells what the signatures of a name are checked with; `anew`: nothing older than the call."""

    def __call__(self, name: str, *, anew: bool) -> Awaitable[tuple[SigningKey, ...]]: ...


class Signatures:
    """Checks signatures, and that each is used once."""

    def __init__(self, find_keys: FindKeys, records: Records) -> None:
        self._find_keys = find_keys
        self._records = records

    async def check(
        self, given: bytes, fields: Mapping[bytes, bytes], *, method: str, target: bytes
    ) -> Principal:
        """Return who has signed a request; its body is not yet compared."""
        form = _FORM.fullmatch(given)
        content = fields.get(CONTENT, b"")
        if form is None or not _CONTENT_FORM.fullmatch(content):
            raise unauthenticated()
        name, at, nonce, signature = form.groups()
        left = int(at) + WINDOW - clock.wall()
        if not 0 <= left <= 2 * WINDOW:
            raise unauthenticated()
        signed = string_to_sign(name, at, nonce, method.encode(), target, content)
        signer = await self._signer(name.decode(), signed, signature)
        if signer is None or clock.wall() >= signer.until:
            raise unauthenticated()
        if content == UNSIGNED and not signer.unsigned:
            raise unauthenticated()
        await self._spend(signer.principal, nonce, left)
        return signer.principal

    async def _signer(self, name: str, signed: bytes, signature: bytes) -> SigningKey | None:
        # A key that another process has made a moment ago is found when the store is asked anew.
        for anew in (False, True):
            for key in await self._find_keys(name, anew=anew):
                if hmac.compare_digest(_signature(key.secret, signed), signature):
                    return key
        return None

    async def _spend(self, principal: Principal, nonce: bytes, left: float) -> None:
        try:
            fresh = await self._records.add(
                meter_name("nonce", principal.id, nonce.decode()), b"1", within=left + 1
            )
        except Unavailable:
            raise keys_unavailable() from None
        if not fresh:
            raise unauthenticated()


def string_to_sign(
    name: bytes, at: bytes, nonce: bytes, method: bytes, target: bytes, content: bytes
) -> bytes:
    """Return what is signed."""
    return b"\n".join((SCHEME.encode(), name, at, nonce, method, target, content))


def check_content(fields: Mapping[bytes, bytes], body: object) -> None:
    """Raise when the body is not the one that was signed."""
    said = fields.get(CONTENT, b"")
    if isinstance(body, bytes):
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest().encode(), said):
            raise unauthenticated()
    elif said != UNSIGNED:
        raise InvalidRequest(
            "An upload is passed on before it could be compared with a signature: sign"
            " UNSIGNED-PAYLOAD with a key that may do so, or send the key itself."
        )


def _signature(secret: bytes, signed: bytes) -> bytes:
    return hmac.digest(secret, signed, "sha256").hex().encode()

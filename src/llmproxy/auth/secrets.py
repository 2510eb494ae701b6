"""What is made of a key: what is kept of it, what is shown of it, how a new one looks.

Rule 1: a key itself is kept nowhere. Its SHA-256 is what a configuration may hold; what is
        compared, and what a store sees, is a digest of that under a random key of the process
        or of the deployment.
Rule 2: a key is found by its whole digest, and compared in constant time.
"""

import base64
import hashlib
import hmac
import re
import secrets
import zlib

PREFIX = "sk-llmproxy-"
DIGEST_KEY_SIZE = 32  # bytes

_ISSUED = re.compile(rb"sk-llmproxy-[A-Za-z0-9_-]{49}")
_sha256, _blake2b = hashlib.sha256, hashlib.blake2b  # on the way of every request
_CHECKSUM = 6  # characters
_FINGERPRINT = 5  # hex digits: 20 bits tell two keys of a log apart, and not much of either


def sha256_of(secret: bytes) -> bytes:
    """Return what a configuration may hold in place of the key."""
    return _sha256(secret).digest()


def digest_of(sha256: bytes, digest_key: bytes) -> bytes:
    """Return what a key is found by."""
    return _blake2b(sha256, key=digest_key, digest_size=32).digest()


def same(one: bytes, other: bytes) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(one, other)


def fingerprint(digest: bytes) -> str:
    """Return what may be shown of a key."""
    return digest.hex()[:_FINGERPRINT]


def signing_secret(secret: bytes) -> bytes:
    """Return what requests are signed with; it does not tell the key."""
    return hashlib.sha256(b"llmproxy-hmac:" + secret).digest()


def new_digest_key() -> bytes:
    """Return a random key for digests."""
    return secrets.token_bytes(DIGEST_KEY_SIZE)


def new_key() -> str:
    """Return a new key: recognisable to scanners for leaked secrets, and 256 bits of chance."""
    body = PREFIX + secrets.token_urlsafe(32)
    return body + _checksum(body.encode()).decode()


def could_be_issued(secret: bytes) -> bool:
    """Tell whether a text is a key of ours, typed without a mistake; nobody is asked."""
    return (
        _ISSUED.fullmatch(secret) is not None
        and _checksum(secret[:-_CHECKSUM]) == secret[-_CHECKSUM:]
    )


def _checksum(body: bytes) -> bytes:
    return base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big"))[:_CHECKSUM]

"""Who an issued key belongs to, without asking the store every time.

A marker in the store is looked at while keys are used; once it has changed, nothing is believed
without another look. So a revoked key is refused within 5 seconds in every worker. While the
store is down, known keys go on (see `lookups.py`); others are 503, never 401 and never let in.
"""

from dataclasses import dataclass, field, replace

from llmproxy import clock
from llmproxy.auth.configured import SigningKey
from llmproxy.auth.documents import IssuedKey
from llmproxy.auth.freshness import Freshness
from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.keys import NAME
from llmproxy.auth.lookups import Lookups, Standing, keys_unavailable
from llmproxy.auth.secrets import digest_of, same
from llmproxy.records import Principal
from llmproxy.store.interface import Unavailable


@dataclass(frozen=True, slots=True)
class _Found:
    digest: bytes = field(repr=False)
    principal: Principal
    until: float  # seconds since 1970


class Directory:
    """The issued keys, as far as this process has met them."""

    def __init__(self, issued: IssuedKeys) -> None:
        self._issued = issued
        self._standing = Standing()
        self._keys = Lookups(self._standing, self._with_digest)
        self._names = Lookups(self._standing, self._named)
        self._freshness = Freshness(self._look)
        self._digest_key: bytes | None = None
        self._marker: bytes | None = None

    async def find(self, sha256: bytes) -> Principal | None:
        """Return whose key has this SHA-256, as long as the key is valid."""
        await self._freshness.check()
        if self._digest_key is None:
            raise keys_unavailable()
        digest = digest_of(sha256, self._digest_key)
        return _valid(await self._keys.get(digest), digest)

    def digest(self, sha256: bytes) -> bytes | None:
        """Return what a key is found by; None as long as that is not known."""
        return digest_of(sha256, self._digest_key) if self._digest_key is not None else None

    def at_hand(self, digest: bytes) -> Principal | None:
        """Return whose key has this digest, if that is known and need not be looked up."""
        entry = self._keys.at_hand(digest) if self._freshness.fresh else None
        return _valid(entry.value, digest) if entry is not None else None

    async def signing(self, name: str, *, anew: bool = False) -> tuple[SigningKey, ...]:
        """Return what the signatures of a caller are checked with: two during a rotation.

        `anew`: what was changed before the call is known.
        """
        if not NAME.fullmatch(name):
            return ()
        await (self._freshness.look() if anew else self._freshness.check())
        found = await self._names.get(name) or ()
        now = clock.wall()
        return tuple(key for key in found if now < key.until)

    async def aclose(self) -> None:
        """End what is under way."""
        await self._freshness.aclose()
        await self._keys.aclose()
        await self._names.aclose()

    async def _with_digest(self, digest: bytes) -> _Found | None:
        key = await self._issued.with_digest(digest)
        return _Found(digest, key.principal, key.until) if key is not None else None

    async def _named(self, name: str) -> tuple[SigningKey, ...] | None:
        keys = [_signing(key) for key in await self._issued.named(name)]
        return tuple(key for key in keys if key is not None) or None

    async def _look(self) -> None:
        now = clock.now()
        try:
            marker = await self._issued.marker()
            changed = self._digest_key is None or marker != self._marker
            if changed:
                # Whoever emptied the store has emptied it of this too.
                self._digest_key = await self._issued.digest_key()
        except Unavailable:
            self._standing.down = True
            return
        self._marker = marker
        self._standing.confirm(now, changed=changed)


def _valid(found: _Found | None, digest: bytes) -> Principal | None:
    if found is None or not same(found.digest, digest) or clock.wall() >= found.until:
        return None
    return found.principal


def _signing(key: IssuedKey) -> SigningKey | None:
    if key.signing is None:
        return None
    principal = replace(key.principal, method="hmac")
    return SigningKey(principal, key.signing, key.until, key.unsigned)

"""Keys that are issued while the proxy runs: made, listed, rotated, revoked, looked up.

Under the digest of a key stands its document, so that looking it up is one question. Under a
name stands its *claim*: which digests belong to it, the newest first. A claim is changed by
comparing and swapping, so of two who change the same name at once one is told to try again.
After each change a marker is changed, by which every worker notices (see `directory.py`).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmproxy import clock, codec
from llmproxy.auth import documents
from llmproxy.auth.documents import IssuedKey
from llmproxy.auth.keys import usable_name
from llmproxy.auth.secrets import (
    digest_of,
    fingerprint,
    new_digest_key,
    new_key,
    sha256_of,
    signing_secret,
)
from llmproxy.records import Principal
from llmproxy.store.interface import Records, Unavailable

ATTEMPTS = 5
AT_ONCE = 100  # documents asked for together
MOST_AT_ONCE = 8  # keys of one name that can work at the same time

_DIGEST = "keys:digest:"
_NAME = "keys:name:"
_MARKER = "keys:changed"
_DIGEST_KEY = "keys:digest-key"


class NameTaken(ValueError):
    """A key of this name works already."""


class NoSuchKey(LookupError):
    """There is no key of this name that works."""


class Expired(ValueError):
    """A key that was made in the place of this one would never work."""


class Contended(Exception):
    """Somebody else changes the same key; try again."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. The secret is shown now or never."""

    key: IssuedKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """Which keys belong to a name."""

    digests: tuple[str, ...]  # hex, newest first
    revoked: bool
    raw: bytes = field(repr=False)  # as the store has it, to be swapped


class IssuedKeys:
    """The issued keys of one store."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def create(
        self,
        name: str,
        fields: Mapping[str, Any] | None = None,
        *,
        note: str = "",
        signing: bool = False,
        unsigned: bool = False,
    ) -> NewKey:
        """Make a key; `fields` are what `Fields.read` returns. A revoked name may be taken over.

        `signing` keeps what signatures are checked with, besides the digest.
        """
        name = usable_name(name)
        principal = Principal(id=f"issued:{secrets.token_hex(6)}", name=name, **(fields or {}))
        old = await self._claim(name)
        if old is not None and not old.revoked:
            raise NameTaken(f"There is a key named {name} already.")
        new, digest = await self._new(principal, note, signing, unsigned)
        claim = _claim((digest,))
        taken = await (
            self._records.add(_NAME + name, claim)
            if old is None
            else self._records.replace(_NAME + name, old.raw, claim)
        )
        if not taken:
            await self._records.delete(_DIGEST + digest)
            raise NameTaken(f"A key named {name} was made at the same time.")
        for digest in old.digests if old is not None else ():
            await self._records.delete(_DIGEST + digest)
        await self._changed()
        return new

    async def rotate(self, name: str, *, overlap: float) -> NewKey:
        """Make a new key for a name; the one before works for `overlap` seconds more."""
        for _ in range(ATTEMPTS):
            claim = await self._claim(name)
            if claim is None or claim.revoked:
                break
            document = await self._records.get(_DIGEST + claim.digests[0])
            if document is None:
                break
            last = documents.read(document)
            expires = last.principal.expires
            if expires is not None and expires <= clock.wall():
                raise Expired(
                    f"The key named {name} has expired, and a new one would have, too."
                    " Revoke it, and create it with a later date."
                )
            new, digest = await self._new(
                last.principal, last.note, last.signing is not None, last.unsigned
            )
            kept, gone = await self._sorted_out(claim.digests)
            if await self._records.replace(_NAME + name, claim.raw, _claim((digest, *kept))):
                for each in kept:
                    await self._amend(each, partial(_ending, end=clock.wall() + overlap))
                for each in gone:
                    await self._records.delete(_DIGEST + each)
                await self._changed()
                return new
            await self._records.delete(_DIGEST + digest)
        else:
            raise Contended(f"The key named {name} is being changed by somebody else.")
        raise NoSuchKey(f"There is no key named {name}.")

    async def revoke(self, name: str) -> None:
        """Refuse every key of a name from now on. Doing it twice does no harm."""
        for _ in range(ATTEMPTS):
            claim = await self._claim(name)
            if claim is None:
                raise NoSuchKey(f"There is no key named {name}.")
            # First the claim: a rotation that is under way then fails, instead of adding a
            # key that this does not see.
            done = claim.revoked or await self._records.replace(
                _NAME + name, claim.raw, _claim(claim.digests, revoked=True)
            )
            if done:
                for each in claim.digests:
                    await self._amend(each, partial(_revoked, now=clock.wall()))
                await self._changed()
                return
        raise Contended(f"The key named {name} is being changed by somebody else.")

    async def all_keys(self) -> list[IssuedKey]:
        """Return all keys, by name and newest first; those that are revoked too."""
        return [key async for several in self._by_name() for key in several]

    async def any_works(self) -> bool:
        """Tell whether there is a key that opens something."""
        now = clock.wall()
        async for several in self._by_name():
            if any(now < key.until for key in several):
                return True
        return False

    async def _by_name(self) -> AsyncIterator[list[IssuedKey]]:
        names = await self._records.names(_NAME)
        for start in range(0, len(names), AT_ONCE):
            several = [each.removeprefix(_NAME) for each in names[start : start + AT_ONCE]]
            for keys in await asyncio.gather(*(self.named(name) for name in several)):
                yield keys

    async def named(self, name: str) -> list[IssuedKey]:
        """Return the keys of a name, the newest first."""
        claim = await self._claim(name)
        if claim is None:
            return []
        digests = [_DIGEST + digest for digest in claim.digests]
        read = await asyncio.gather(*(self._records.get(digest) for digest in digests))
        return [documents.read(document) for document in read if document is not None]

    async def with_digest(self, digest: bytes) -> IssuedKey | None:
        """Return the key that has this digest."""
        document = await self._records.get(_DIGEST + digest.hex())
        return documents.read(document) if document is not None else None

    async def digest_key(self) -> bytes:
        """Return what the keys of this deployment are digested with; made on first use."""
        found = await self._records.get(_DIGEST_KEY)
        if found is None:
            await self._records.add(_DIGEST_KEY, new_digest_key())
            found = await self._records.get(_DIGEST_KEY)
        if found is None:
            raise Unavailable("the store forgot what it was given")
        return found

    async def marker(self) -> bytes | None:
        """Return what is different after every change."""
        return await self._records.get(_MARKER)

    async def _changed(self) -> None:
        # Chance and not a counter: a counter would need a step that cannot be interrupted.
        await self._records.put(_MARKER, secrets.token_bytes(12))

    async def _new(
        self, principal: Principal, note: str, signing: bool, unsigned: bool
    ) -> tuple[NewKey, str]:
        secret = new_key()
        digest = digest_of(sha256_of(secret.encode()), await self.digest_key())
        key = IssuedKey(
            principal,
            fingerprint(digest),
            clock.wall(),
            note,
            signing=signing_secret(secret.encode()) if signing else None,
            unsigned=unsigned,
        )
        await self._records.put(_DIGEST + digest.hex(), documents.write(key))
        return NewKey(key, secret), digest.hex()

    async def _claim(self, name: str) -> Claim | None:
        raw = await self._records.get(_NAME + name)
        if raw is None:
            return None
        try:
            told = codec.loads(raw)
            return Claim(tuple(told["digests"]), told["revoked"], raw)
        except (KeyError, TypeError, ValueError):  # as with a key itself, see `documents.py`
            raise Unavailable("a name in the store cannot be read") from None

    async def _sorted_out(self, digests: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Part the digests whose keys still work from those that can be forgotten."""
        kept: list[str] = []
        for each in digests:
            document = await self._records.get(_DIGEST + each)
            if document is not None and documents.read(document).until > clock.wall():
                kept.append(each)
        kept = kept[: MOST_AT_ONCE - 1]
        return kept, [each for each in digests if each not in kept]

    async def _amend(self, digest: str, change: Callable[[IssuedKey], IssuedKey]) -> None:
        for _ in range(ATTEMPTS):
            old = await self._records.get(_DIGEST + digest)
            if old is None:
                return
            new = documents.write(change(documents.read(old)))
            if new == old or await self._records.replace(_DIGEST + digest, old, new):
                return
        raise Contended("A key is being changed by somebody else.")


def _revoked(key: IssuedKey, now: float) -> IssuedKey:
    return replace(key, revoked=key.revoked or now, signing=None)


def _ending(key: IssuedKey, end: float) -> IssuedKey:
    if key.replaced_until is not None and key.replaced_until <= end:
        return key
    return replace(key, replaced_until=end)


def _claim(digests: tuple[str, ...], *, revoked: bool = False) -> bytes:
    return codec.dumps({"v": 1, "digests": digests, "revoked": revoked})

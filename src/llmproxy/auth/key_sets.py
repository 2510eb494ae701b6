"""The public keys that an issuer of tokens signs with: a JWKS from a URL or a file.

Without either, the issuer is asked where it is (OIDC discovery).

Rule 1: a set is read again after `KEEP`, in the background, and at once when a token names a key
        that is not in it, but for such tokens no more than once in `PAUSE`.
Rule 2: when the issuer cannot be reached, the keys that are known go on for `GRACE`.
Rule 3: nothing that an issuer sends can make us read more than `LARGEST`, follow a redirect or,
        when we have reached it by TLS, go on without.
"""

import asyncio
import logging
import math
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx

from llmproxy import clock, codec
from llmproxy.auth.single_flight import SingleFlight

KEEP = 300.0  # seconds
GRACE = 3600.0  # seconds
PAUSE = 10.0  # seconds
TIMEOUT = 5.0  # seconds, for each of the two questions
LARGEST = 1024 * 1024  # bytes

T = TypeVar("T")

log = logging.getLogger("llmproxy")


class NoKeySet(Exception):
    """The keys are not to be had now. Its text is for the log."""


class KeySet(Generic[T]):
    """Keys by their `kid`, as they were when they were last read."""

    def __init__(
        self,
        *,
        issuer: str,
        place: str | None,
        understand: Callable[[Mapping[str, Any]], Mapping[str, T]],
    ) -> None:
        self._issuer = issuer
        self._place = place
        self._understand = understand
        self._keys: Mapping[str, T] = {}
        self._read_at = -math.inf
        self._tried_at = -math.inf
        self._failed = False
        self._flight: SingleFlight[str, None] = SingleFlight()
        self._client: httpx.AsyncClient | None = None
        self.generation = 0  # another one when keys were added or taken away

    @property
    def good(self) -> bool:
        """Whether the keys may be used as they are; sees to it that they are read again."""
        now = clock.now()
        age = now - self._read_at
        if KEEP < age < GRACE and now - self._tried_at > PAUSE:
            self._flight.launch("read", self._read)
        return age < GRACE

    @property
    def retry_in(self) -> int:
        """In how many seconds the issuer will be asked again, after it could not be read."""
        return max(1, math.ceil(self._tried_at + PAUSE - clock.now()))

    async def find(self, kid: str | None) -> T | None:
        """Return a key, without a name the only one; None when the issuer has no such key.

        Raises `NoKeySet` when that cannot be known.
        """
        if self.good and (found := self._named(kid)) is not None:
            return found
        if clock.now() - self._tried_at >= PAUSE or self._flight.busy:
            await self._flight.run("read", self._read)
        found = self._named(kid) if self.good else None
        if found is None and self._failed:
            raise NoKeySet("the keys of the issuer cannot be read")
        return found

    async def aclose(self) -> None:
        """Close the connections to the issuer."""
        await self._flight.aclose()
        if self._client is not None:
            await self._client.aclose()

    def _named(self, kid: str | None) -> T | None:
        if kid is not None:
            return self._keys.get(kid)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    async def _read(self) -> None:
        self._tried_at = now = clock.now()
        try:
            document = await self._document()
            keys = self._understand(_table(document))
        except (NoKeySet, httpx.HTTPError, httpx.InvalidURL, OSError, codec.NotJson) as exc:
            if not self._failed:  # once, and not for every token
                why = str(exc) if isinstance(exc, NoKeySet) else type(exc).__name__
                log.error("The keys of the tokens' issuer could not be read: %s", why)
            self._failed = True
            return
        if keys.keys() != self._keys.keys():
            self.generation += 1
        self._keys, self._read_at, self._failed = keys, now, False

    async def _document(self) -> bytes:
        place = self._place
        if place is not None and not place.startswith(("https://", "http://")):
            return await asyncio.to_thread(_content, place)
        if place is None:
            where = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
            told = _table(await self._get(where))
            if told.get("issuer") != self._issuer:
                raise NoKeySet("its configuration is that of another issuer")
            place = told.get("jwks_uri")
            if not isinstance(place, str):
                raise NoKeySet("its configuration names no jwks_uri")
            if urlsplit(place).scheme not in ("https", urlsplit(self._issuer).scheme):
                raise NoKeySet("its jwks_uri leaves TLS")
        return await self._get(place)

    async def _get(self, url: str) -> bytes:
        if self._client is None:
            # In a thread: reading the certificates of the system takes some 20 ms.
            tls = await asyncio.to_thread(ssl.create_default_context)
            self._client = httpx.AsyncClient(
                verify=tls, timeout=TIMEOUT, trust_env=False, follow_redirects=False
            )
        try:
            async with asyncio.timeout(TIMEOUT), self._client.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise NoKeySet(f"it answered {answer.status_code}")
                content = b""
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST:
                        raise NoKeySet(f"its answer is larger than {LARGEST} bytes")
                return content
        except TimeoutError:
            raise NoKeySet(f"it did not answer within {TIMEOUT:g} s") from None


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(LARGEST)


def _table(document: bytes) -> Mapping[str, Any]:
    told = codec.loads(document)
    if not isinstance(told, Mapping):
        raise NoKeySet("what it sent is no JSON object")
    return told

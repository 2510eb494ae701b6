"""Tokens of an identity provider (JWT), checked with its public keys.

Rule 1: the algorithms are pinned to those with a public key: never `none`, never HS*, where a
        public key would be taken for a shared secret. A key serves its own kind only.
Rule 2: issuer, audience and end are required; clocks may differ by `LEEWAY`.
Rule 3: keys come from the issuer's set alone. What a token says of keys is not read, but `kid`.
Rule 4: a token that was found good is remembered by its digest until it ends.

Needs PyJWT: pip install llmproxy[jwt].
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmproxy import clock
from llmproxy.auth.claims import BadClaims, Claims
from llmproxy.auth.credentials import unauthenticated
from llmproxy.auth.key_sets import KeySet, NoKeySet
from llmproxy.auth.secrets import digest_of, new_digest_key, sha256_of
from llmproxy.errors import StoreUnavailable
from llmproxy.records import Principal

try:
    import jwt
    from jwt import algorithms as jwt_algorithms
except ImportError as exc:
    raise ImportError("LLMPROXY_AUTH=jwt needs PyJWT: pip install llmproxy[jwt]") from exc

LEEWAY = 30.0  # seconds
MOST_KNOWN = 10_000  # tokens

# What each algorithm signs with, as a JWKS names it.
KINDS = {
    **{f"{family}{size}": "RSA" for family in ("RS", "PS") for size in (256, 384, 512)},
    **{f"ES{size}": "EC" for size in (256, 384, 512)},
    "EdDSA": "OKP",
}
ALGORITHMS = tuple(KINDS)

log = logging.getLogger("llmproxy")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key of the issuer."""

    kind: str
    algorithm: str | None  # the one it is for, where the issuer says so
    key: Any


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    generation: int  # of the keys it was checked with
    until: float  # seconds since 1970


class Tokens:
    """Turns tokens into callers."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str | Sequence[str],
        claims: Claims,
        algorithms: Sequence[str] = ALGORITHMS,
        jwks: str | None = None,
    ) -> None:
        if not issuer or not audience:
            raise ValueError("an issuer and an audience are needed: else any token would do")
        self._algorithms = checked_algorithms(algorithms)
        self._issuer = issuer
        self._audience = [audience] if isinstance(audience, str) else list(audience)
        self._claims = claims
        self._keys = KeySet(issuer=issuer, place=jwks, understand=public_keys)
        self._digest_key = new_digest_key()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    async def find(self, token: bytes) -> Principal:
        """Return whose token this is; raise when it is not a good one, or nobody can say."""
        digest = digest_of(sha256_of(token), self._digest_key)
        known = self._known.get(digest)
        if known is not None and self._keys.good and known.generation == self._keys.generation:
            if clock.wall() >= known.until:
                raise unauthenticated()
            self._known.move_to_end(digest)
            return known.principal
        told, generation = await self._verified(token.decode("ascii"))
        try:
            principal = self._claims.principal(told)
        except BadClaims as exc:
            log.warning("A genuine token was refused: %s", exc)
            raise unauthenticated() from None
        self._known[digest] = _Known(principal, generation, told["exp"] + LEEWAY)
        self._known.move_to_end(digest)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return principal

    async def aclose(self) -> None:
        """Close the connections to the issuer."""
        await self._keys.aclose()

    async def _verified(self, token: str) -> tuple[dict[str, Any], int]:
        # Errors of PyJWT are never chained: they can hold what stands in the token.
        try:
            head = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise unauthenticated() from None
        algorithm, kid = head.get("alg"), head.get("kid")
        if algorithm not in self._algorithms or not isinstance(kid, str | None):
            raise unauthenticated()
        try:
            key = await self._keys.find(kid)
        except NoKeySet:
            raise StoreUnavailable(
                "Tokens cannot be checked right now.", retry_after=self._keys.retry_in
            ) from None
        generation = self._keys.generation
        if key is None or key.kind != KINDS[algorithm]:
            raise unauthenticated()
        if key.algorithm not in (None, algorithm):
            raise unauthenticated()
        try:
            told = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
            # PyJWT takes a text for a time, and whole numbers of any length.
            told["exp"] = float(told["exp"])
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise unauthenticated() from None
        return told, generation


def checked_algorithms(given: Sequence[str]) -> tuple[str, ...]:
    """Return the algorithms that tokens may be signed with; raise for one that is not safe."""
    if not given or any(algorithm not in KINDS for algorithm in given):
        raise ValueError(f"must be one or more of {', '.join(KINDS)}")
    return tuple(given)


def public_keys(document: Mapping[str, Any]) -> dict[str, PublicKey]:
    """Return the keys of a JWKS that signatures can be checked with; others are left out."""
    told = document.get("keys")
    if not isinstance(told, list):
        raise NoKeySet("it sent no list of keys")
    keys: dict[str, PublicKey] = {}
    for number, each in enumerate(told):
        if not isinstance(each, Mapping) or each.get("use", "sig") != "sig":
            continue
        reader = _READERS.get(str(each.get("kty")))
        if reader is None:
            continue  # a shared secret among them; such a set is not for the public
        try:
            key = reader.from_jwk(dict(each))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        kid, algorithm = each.get("kid"), each.get("alg")
        name = kid if isinstance(kid, str) else f"#{number}"
        told_for = algorithm if isinstance(algorithm, str) else None
        keys[name] = PublicKey(str(each["kty"]), told_for, key)
    if not keys:
        raise NoKeySet("it sent no key that signatures could be checked with")
    return keys


_READERS: dict[str, Any] = {
    "RSA": jwt_algorithms.RSAAlgorithm,
    "EC": jwt_algorithms.ECAlgorithm,
    "OKP": jwt_algorithms.OKPAlgorithm,
}

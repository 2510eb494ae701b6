"""The callers that the configuration names, found by the digest of their key."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmproxy import clock
from llmproxy.auth.certificates import Certificates
from llmproxy.auth.keys import KeyEntry
from llmproxy.auth.secrets import digest_of, new_digest_key, same, sha256_of
from llmproxy.records import Principal, Role

ADMIN = Principal(id="admin", name="admin", role=Role.ADMIN)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What a caller's signatures are checked with."""

    principal: Principal
    secret: bytes = field(repr=False)
    until: float = math.inf  # seconds since 1970
    unsigned: bool = False  # may sign an upload without its content


def entry_with(sha256: bytes, entries: Iterable[KeyEntry]) -> int:
    """Return the number of the entry whose key has this SHA-256; 0 = there is none."""
    for number, entry in enumerate(entries, 1):
        if entry.sha256 is not None and same(entry.sha256, sha256):
            return number
    return 0


class ConfiguredKeys:
    """Kept in memory as a whole, replaced as a whole."""

    def __init__(
        self,
        entries: Iterable[KeyEntry] = (),
        *,
        admin_key: str | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._digest_key = new_digest_key()  # of this process: nothing of it is kept
        self._admin = sha256_of(admin_key.encode()) if admin_key else None
        self._certificates = certificates
        self._found: Mapping[bytes, tuple[bytes, Principal]] = {}
        self.lasting: Mapping[bytes, Principal] = {}
        """By digest, those whose key has no end."""
        self._signing: Mapping[str, SigningKey] = {}
        self.replace(entries)

    def replace(self, entries: Iterable[KeyEntry]) -> None:
        """Take these callers in the place of those before. The admin stays.

        Raises `ValueError` when one of them has the admin's key: it would be the admin.
        """
        entries = tuple(entries)
        if self._admin is not None and (number := entry_with(self._admin, entries)):
            raise ValueError(f"entry {number} has the admin's key")
        self.entries = entries
        secrets = [(e.sha256, e.principal) for e in entries if e.sha256 is not None]
        if self._admin is not None:
            secrets.append((self._admin, ADMIN))
        found = {}
        for sha256, principal in secrets:
            digest = digest_of(sha256, self._digest_key)
            found[digest] = (digest, principal)
        self._found = found
        self.lasting = {digest: who for digest, who in found.values() if who.expires is None}
        self._signing = {
            e.principal.name: SigningKey(
                replace(e.principal, method="hmac"),
                e.signing,
                e.principal.expires or math.inf,
                e.unsigned,
            )
            for e in entries
            if e.signing is not None
        }
        if self._certificates is not None:
            self._certificates.replace(
                (e.certificate, replace(e.principal, method="certificate"))
                for e in entries
                if e.certificate is not None
            )

    def admin_alone(self) -> "ConfiguredKeys":
        """Return the same without any key but the admin's."""
        alone = ConfiguredKeys()
        alone._admin = self._admin
        alone.replace(())
        return alone

    def find(self, sha256: bytes) -> Principal | None:
        """Return whose key has this SHA-256, as long as the key is valid."""
        return self.with_digest(self.digest(sha256))

    def digest(self, sha256: bytes) -> bytes:
        """Return what a key is found by, as long as this process lives."""
        return digest_of(sha256, self._digest_key)

    def with_digest(self, digest: bytes) -> Principal | None:
        """Return whose key has this digest, as long as the key is valid."""
        found = self._found.get(digest)
        if found is None or not same(found[0], digest):
            return None
        return self._valid(found[1])

    def again(self, digest: bytes) -> Principal | None:
        """Return the same for a digest that was ours to begin with: nobody has sent it."""
        found = self._found.get(digest)
        return self._valid(found[1]) if found is not None else None

    def _valid(self, principal: Principal) -> Principal | None:
        if principal.expires is not None and clock.wall() >= principal.expires:
            return None
        return principal

    def signing(self, name: str) -> SigningKey | None:
        """Return what the signatures of a caller are checked with."""
        return self._signing.get(name)

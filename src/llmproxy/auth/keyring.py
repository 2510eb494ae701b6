"""All keys of a deployment, wherever they come from: configured ones first, then issued ones."""

from dataclasses import dataclass

from llmproxy.auth.configured import ConfiguredKeys, SigningKey
from llmproxy.auth.directory import Directory
from llmproxy.auth.key_file import KeyFile
from llmproxy.auth.permissions import check_address
from llmproxy.auth.secrets import could_be_issued, sha256_of
from llmproxy.records import Principal


@dataclass(frozen=True, slots=True, repr=False)
class Known:
    """What a key is found by. For whoever sees the same key again and would not read it again."""

    configured: bytes
    issued: bytes | None  # None where it cannot have been issued

    def __repr__(self) -> str:
        return "Known()"


class Keyring:
    """Finds callers by key, and by name for their signatures."""

    def __init__(
        self,
        configured: ConfiguredKeys,
        *,
        file: KeyFile | None = None,
        issued: Directory | None = None,
    ) -> None:
        self._configured = configured
        self._file = file
        self._issued = issued

    async def find(self, secret: bytes) -> Principal | None:
        """Return whose key this is. The store is asked only for what we could have issued."""
        if self._file is not None:
            await self._file.check()
        sha256 = sha256_of(secret)
        principal = self._configured.find(sha256)
        if principal is None and self._issued is not None and could_be_issued(secret):
            principal = await self._issued.find(sha256)
        return principal

    def known(self, secret: bytes) -> Known:
        """Return what a key is found by."""
        sha256, issued = sha256_of(secret), None
        if self._issued is not None and could_be_issued(secret):
            issued = self._issued.digest(sha256)
        return Known(self._configured.digest(sha256), issued)

    def again(self, known: Known, client: str | None) -> Principal | None:
        """Return whose key this is; None when that has to be found out, or it is nobody's.

        Raises when the caller may not call from where it does.
        """
        if self._file is not None and not self._file.fresh:
            return None
        principal = self._configured.lasting.get(known.configured) or self._with_end(known)
        if principal is not None and principal.networks:
            check_address(principal, client)
        return principal

    def _with_end(self, known: Known) -> Principal | None:
        principal = self._configured.again(known.configured)
        if principal is None and self._issued is not None and known.issued is not None:
            principal = self._issued.at_hand(known.issued)
        return principal

    async def signing(self, name: str, *, anew: bool = False) -> tuple[SigningKey, ...]:
        """Return what the signatures of a caller are checked with; `anew`: as it is by now."""
        if self._file is not None:
            await self._file.check()
        configured = self._configured.signing(name)
        if configured is not None:
            return (configured,)
        return await self._issued.signing(name, anew=anew) if self._issued is not None else ()

    async def aclose(self) -> None:
        """End what is under way."""
        if self._file is not None:
            await self._file.aclose()
        if self._issued is not None:
            await self._issued.aclose()

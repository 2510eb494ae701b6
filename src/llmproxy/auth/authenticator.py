"""Who is calling: the methods of a deployment, one after the other.

What a credential looks like decides who is asked: a signature the signatures, three dotted
parts the tokens if there are any, everything else the keys. A client certificate counts where
no credential was sent. All that fails, fails in the same words.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from llmproxy.auth.certificates import Certificates
from llmproxy.auth.credentials import Kind, read_credential, unauthenticated
from llmproxy.auth.keyring import Keyring, Known
from llmproxy.auth.permissions import check_address
from llmproxy.auth.signatures import Signatures
from llmproxy.errors import ProxyError, StoreUnavailable
from llmproxy.records import Principal, Role
from llmproxy.types import Header


class Call(NamedTuple):
    """What of a request tells who is calling."""

    headers: list[Header]
    fields: Mapping[bytes, bytes]  # the same as a mapping
    method: str
    target: bytes  # path and query, as they were sent
    peer: str | None  # the address at the other end of the connection
    client: str | None  # the caller's own, as far as proxies are trusted

    def __repr__(self) -> str:
        return f"Call({self.method}, from {self.client})"  # no header and no query


class TokenCheck(Protocol):
    """What is asked about tokens; the one who does it needs a library that is optional."""

    async def find(self, token: bytes) -> Principal:
        """Return whose token this is, or raise."""

    async def aclose(self) -> None:
        """Let go of everything."""


Again = Callable[[Known, str | None], Principal | None]


class Authenticator:
    """Asks those who can know. Whoever is not given is not a method of this deployment."""

    def __init__(
        self,
        *,
        keyring: Keyring | None = None,
        tokens: TokenCheck | None = None,
        signatures: Signatures | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._keyring = keyring
        self._tokens = tokens
        self._signatures = signatures
        self._certificates = certificates
        self.again: Again = keyring.again if keyring is not None else _nobody
        """Tells who comes again with the same headers; None when that has to be asked anew."""

    async def authenticate(self, call: Call) -> Principal:
        """Return who is calling; raise when nobody does who may, or not from there."""
        principal = await self.identify(call)
        check_address(principal, call.client)
        return principal

    async def identify(self, call: Call) -> Principal:
        """Return whose credential it is, wherever it is used; raise when it is nobody's."""
        credential = read_credential(call.headers, call.fields)
        principal: Principal | None = None
        if credential is None:
            if self._certificates is not None:
                repeated = len(call.fields) != len(call.headers)
                principal = self._certificates.find(call.peer, call.fields, repeated=repeated)
        elif credential[0] is Kind.SIGNATURE:
            if self._signatures is not None:
                principal = await self._signatures.check(
                    credential[1], call.fields, method=call.method, target=call.target
                )
        elif credential[0] is Kind.TOKEN and self._tokens is not None:
            principal = await self._tokens.find(credential[1])
        elif self._keyring is not None:
            principal = await self._keyring.find(credential[1])
        if principal is None:
            raise unauthenticated()
        return principal

    def known(self, call: Call) -> Known | None:
        """Return what a key that was good is known by; None of what has to be checked each time."""
        credential = read_credential(call.headers, call.fields)
        if credential is None or credential[0] is Kind.SIGNATURE or self._keyring is None:
            return None
        if credential[0] is Kind.TOKEN and self._tokens is not None:
            return None
        return self._keyring.known(credential[1])

    async def role(self, call: Call) -> Role | None:
        """Return the role of whoever is calling; None for nobody who may.

        Raises `StoreUnavailable` when that cannot be known.
        """
        try:
            return (await self.authenticate(call)).role
        except StoreUnavailable:
            raise
        except ProxyError:
            return None

    async def may_view(self, call: Call) -> bool:
        """Tell whether the caller may read metrics and the details of health."""
        return await self.role(call) in (Role.VIEWER, Role.ADMIN)

    async def may_administer(self, call: Call) -> bool:
        """Tell whether the caller may use the admin API."""
        return await self.role(call) is Role.ADMIN

    async def aclose(self) -> None:
        """End what is under way."""
        if self._keyring is not None:
            await self._keyring.aclose()
        if self._tokens is not None:
            await self._tokens.aclose()


def _nobody(known: Known, client: str | None) -> None:
    """Stand for a keyring where there is none."""

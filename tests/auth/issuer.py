"""An issuer of tokens: real keys, and a real server that shows the public ones."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from llmproxy.types import Receive, Scope, Send
from tests.support.rig import served_here


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """Make a key once per run: RSA takes a while."""
    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if kind == "EC":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def public_jwk(kind: str, number: int = 0) -> dict[str, Any]:
    """Return a public key as an issuer shows it."""
    algorithm: Any = {
        "RSA": jwt.algorithms.RSAAlgorithm,
        "EC": jwt.algorithms.ECAlgorithm,
        "OKP": jwt.algorithms.OKPAlgorithm,
    }[kind]
    shown: dict[str, Any] = algorithm.to_jwk(private_key(kind, number).public_key(), as_dict=True)
    return {**shown, "kid": f"{kind}-{number}", "use": "sig"}


class Issuer:
    """What it shows, how it behaves, and how often it was asked for what."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[dict[str, Any]] = [public_jwk("RSA")]
        self.configuration: dict[str, Any] = {}
        self.status = 200
        self.raw: bytes | None = None
        self.hold: asyncio.Event | None = None
        self.asked: Counter[str] = Counter()

    @property
    def jwks(self) -> str:
        """Where its keys are."""
        return f"{self.url}/keys"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.asked[scope["path"]] += 1
        if self.hold is not None:
            await self.hold.wait()
        if scope["path"].endswith("/keys"):
            body = self.raw if self.raw is not None else json.dumps({"keys": self.keys}).encode()
        else:
            told = {"issuer": self.url, "jwks_uri": self.jwks, **self.configuration}
            body = json.dumps(told).encode()
        elsewhere = scope["path"] == "/elsewhere/keys"
        status = 200 if elsewhere else self.status
        headers = [(b"location", b"/elsewhere/keys")] if status == 302 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def token(
        self,
        *,
        kind: str = "RSA",
        number: int = 0,
        algorithm: str | None = None,
        head: dict[str, Any] | None = None,
        **changed: Any,
    ) -> bytes:
        """Return a token; a claim that is None is left out."""
        claims = {
            "iss": self.url,
            "aud": "llmproxy",
            "sub": "alice",
            "exp": int(time.time()) + 600,
            **changed,
        }
        return jwt.encode(
            {name: value for name, value in claims.items() if value is not None},
            private_key(kind, number),
            algorithm=algorithm or {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[kind],
            headers={
                name: value
                for name, value in {"kid": f"{kind}-{number}", **(head or {})}.items()
                if value is not None
            },
        ).encode()


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    """Run an issuer."""
    issuer = Issuer()
    async with served_here(issuer, lifespan="off") as port:
        issuer.url = f"http://127.0.0.1:{port}"
        yield issuer

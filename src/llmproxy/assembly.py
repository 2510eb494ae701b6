"""From settings to the engines and the layers in front of them: one function per engine."""

import importlib
import os
from dataclasses import dataclass, field

from llmproxy.auth.authenticator import Authenticator, TokenCheck
from llmproxy.auth.certificates import Certificates
from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.directory import Directory
from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.key_file import KeyFile
from llmproxy.auth.keyring import Keyring
from llmproxy.auth.signatures import Signatures
from llmproxy.metering.prices import PriceList
from llmproxy.metrics import Metrics
from llmproxy.middleware.admission import AdmissionMiddleware
from llmproxy.middleware.auth import AuthMiddleware, PermissionMiddleware
from llmproxy.middleware.rate_limit import RateLimitMiddleware
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.queue import Admission, part_of
from llmproxy.settings import Settings
from llmproxy.settings.engines import FIELDS
from llmproxy.stack import Layer, Part
from llmproxy.store.interface import Store
from llmproxy.store.memory import MemoryStore
from llmproxy.store.opening import open_store


@dataclass(slots=True)
class Engines:
    """What decides in one event loop, and the parts of the chain that ask it."""

    store: Store
    local: Store  # stands in for the store while that is away; the same in memory
    issued: IssuedKeys
    configured: ConfiguredKeys
    authenticator: Authenticator | None
    limiter: Limiter
    parts: tuple[Part, ...] = field(default=())

    async def start(self) -> None:
        """Begin to renew what must be renewed."""
        await self.store.start()

    async def aclose(self) -> None:
        """Settle what is open, then let go of everything."""
        if self.authenticator is not None:
            await self.authenticator.aclose()
        await self.limiter.aclose()
        await self.store.aclose()


def assemble(
    settings: Settings, metrics: Metrics, trusted_proxies: TrustedProxies, place: int
) -> Engines:
    """Make the engines, and the parts of the chain as the settings name them."""
    store = open_store(settings.store.url)
    local = store if not settings.store.shared else MemoryStore()
    issued = IssuedKeys(store)
    certificates = Certificates(trusted_proxies)
    admin_key = settings.admin_key.get_secret_value() if settings.admin_key is not None else None
    configured = ConfiguredKeys(
        settings.keys.entries, admin_key=admin_key, certificates=certificates
    )
    engines = Engines(
        store=store,
        local=local,
        issued=issued,
        configured=configured,
        authenticator=_authenticator(settings, store, issued, configured, certificates),
        limiter=Limiter(
            store,
            local,
            limits=settings.limits,
            budgets=settings.budget,
            prices=PriceList(settings.prices),
            workers=settings.workers,
            store_down=settings.store_down,
            charge_cancelled=settings.charge_cancelled,
            at_once=not settings.store.shared,
            counters=metrics,
        ),
    )
    parts = [part_named(name, engines) for name in settings.chain]
    if settings.max_inflight:
        parts.append(_admission(settings, metrics, place))
    engines.parts = tuple(parts)
    return engines


def _authenticator(
    settings: Settings,
    store: Store,
    issued: IssuedKeys,
    configured: ConfiguredKeys,
    certificates: Certificates,
) -> Authenticator | None:
    if settings.auth == "off":
        return None
    methods = settings.auth.split("+")
    file = None
    if settings.keys.file is not None:
        file = KeyFile(
            settings.keys.file,
            fields=FIELDS,
            environ=settings.keys.environ or os.environ,
            taken=configured.replace,
        )
    keyring = Keyring(configured, file=file, issued=Directory(issued))
    return Authenticator(
        # Without the method the keys open nothing, but the admin's.
        keyring=keyring if "keys" in methods else Keyring(configured.admin_alone()),
        tokens=_tokens(settings) if "jwt" in methods else None,
        signatures=Signatures(keyring.signing, store) if "hmac" in methods else None,
        certificates=certificates,
    )


def _tokens(settings: Settings) -> TokenCheck:
    from llmproxy.auth.claims import claims
    from llmproxy.auth.tokens import ALGORITHMS, Tokens  # an extra

    assert settings.jwt_issuer is not None  # or the start was refused
    return Tokens(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        claims=claims(settings.jwt_claims, fields=FIELDS),
        algorithms=settings.jwt_algorithms or ALGORITHMS,
        jwks=settings.jwt_jwks,
    )


def part_named(name: str, engines: Engines) -> Part:
    """Return what one name in LLMPROXY_MIDDLEWARE stands for."""
    if name == "auth":
        assert engines.authenticator is not None
        return _auth(engines.authenticator)
    if name == "rate_limit":
        return _limits(engines.limiter)
    return Part(layer=layer_named(name))


def _auth(authenticator: Authenticator) -> Part:
    return Part(
        gate=lambda app: AuthMiddleware(app, authenticator=authenticator),
        layer=PermissionMiddleware,
    )


def _limits(limiter: Limiter) -> Part:
    """Return the part that holds callers to their limits."""
    return Part(layer=lambda app: RateLimitMiddleware(app, limiter=limiter), usage=True)


def _admission(settings: Settings, metrics: Metrics, place: int) -> Part:
    admission = Admission(
        max_inflight=part_of(settings.max_inflight, settings.workers, place),
        queue_size=part_of(settings.queue_size, settings.workers, place),
        queue_timeout=settings.queue_timeout,
    )
    return Part(
        layer=lambda app: AdmissionMiddleware(
            app, admission=admission, metrics=metrics, total=settings.timeout_total
        ),
        usage=True,
    )


def layer_named(name: str) -> Layer:
    """Return a layer of the operator's own, by `package.module:Class`."""
    module, _, attribute = name.partition(":")
    layer: Layer = getattr(importlib.import_module(module), attribute)
    return layer

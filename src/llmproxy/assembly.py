"""From settings to the engines and the layers in front of them."""

import os
from functools import partial

from llmproxy import clock
from llmproxy.auth.authenticator import Authenticator, TokenCheck
from llmproxy.auth.certificates import Certificates
from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.directory import Directory
from llmproxy.auth.issued import IssuedKeys
from llmproxy.auth.key_file import KeyFile
from llmproxy.auth.keyring import Keyring
from llmproxy.auth.signatures import Signatures
from llmproxy.engines import Engines
from llmproxy.metering.prices import PriceList
from llmproxy.metrics import Metrics
from llmproxy.parts import chain_of
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.queue import part_of
from llmproxy.records import Upstream
from llmproxy.routing.breaker import Breaker
from llmproxy.routing.discovery.watch import Discovery
from llmproxy.routing.health import Health
from llmproxy.routing.registry import Registry
from llmproxy.routing.server import Server
from llmproxy.settings import Settings
from llmproxy.settings.engines import FIELDS
from llmproxy.settings.upstreams import read_server_file
from llmproxy.store.interface import Store
from llmproxy.store.memory import MemoryStore
from llmproxy.store.opening import open_store
from llmproxy.transport.connect import transport_for
from llmproxy.transport.never_called import is_forbidden


def assemble(
    settings: Settings, metrics: Metrics, trusted_proxies: TrustedProxies, place: int
) -> Engines:
    """Make the engines, and the parts of the chain as the settings name them."""
    registry = Registry(lambda upstream: _server(settings, place, metrics, registry, upstream))
    store = open_store(settings.store.url)
    local = store if not settings.store.shared else MemoryStore()
    issued = IssuedKeys(store)
    certificates = Certificates(trusted_proxies)
    admin_key = settings.admin_key.get_secret_value() if settings.admin_key is not None else None
    configured = ConfiguredKeys(
        settings.keys.entries, admin_key=admin_key, certificates=certificates
    )
    engines = Engines(
        registry=registry,
        discovery=Discovery(
            registry,
            [each for each in settings.upstreams if each.found_by],
            read=partial(read_server_file, environ=os.environ),
            forbidden=is_forbidden,
        ),
        health=Health(registry, metrics),
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
            prices=PriceList(
                settings.prices,
                {alias.name: [model for model, _ in alias.targets] for alias in settings.aliases},
            ),
            workers=settings.workers,
            store_down=settings.store_down,
            charge_cancelled=settings.charge_cancelled,
            at_once=store if isinstance(store, MemoryStore) else None,
            counters=metrics,
        ),
    )
    registry.replace("configured", [each for each in settings.upstreams if not each.found_by])
    engines.watches.append(engines.discovery.run)
    engines.parts = chain_of(engines, settings, metrics, place)
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


def _server(
    settings: Settings, place: int, metrics: Metrics, registry: Registry, upstream: Upstream
) -> Server:
    def moved(_: str, state: str) -> None:
        successor = registry.find(upstream.name)
        if successor is None or successor.upstream is upstream:  # it may have left since
            metrics.breaker(upstream.name, state)

    return Server(
        upstream,
        transport_for(upstream, resent=lambda: metrics.attempt(upstream.name, "resent")),
        breaker=Breaker(clock.now, moved),
        most=part_of(upstream.max_inflight, settings.workers, place),
    )

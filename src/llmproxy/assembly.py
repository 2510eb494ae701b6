"""From settings to the engines and the layers in front of them: one function per engine."""

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
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
from llmproxy.means import Means
from llmproxy.metering.prices import PriceList
from llmproxy.metrics import Metrics
from llmproxy.middleware.admission import AdmissionMiddleware
from llmproxy.middleware.auth import AuthMiddleware, PermissionMiddleware
from llmproxy.middleware.rate_limit import RateLimitMiddleware
from llmproxy.middleware.routing import RoutingMiddleware
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.queue import Admission, part_of
from llmproxy.records import Upstream
from llmproxy.routing.aliases import Aliases
from llmproxy.routing.breaker import Breaker
from llmproxy.routing.catalogue import Catalogue
from llmproxy.routing.discovery.watch import Discovery
from llmproxy.routing.fallbacks import Fallbacks
from llmproxy.routing.health import Health
from llmproxy.routing.kept import Room
from llmproxy.routing.load_watch import LoadWatch
from llmproxy.routing.places import Places
from llmproxy.routing.registry import Registry
from llmproxy.routing.router import Router
from llmproxy.routing.rules import Rules
from llmproxy.routing.server import Server
from llmproxy.settings import Settings
from llmproxy.settings.engines import FIELDS
from llmproxy.settings.upstreams import read_server_file
from llmproxy.stack import Layer, Part
from llmproxy.store.interface import Store
from llmproxy.store.memory import MemoryStore
from llmproxy.store.opening import open_store
from llmproxy.transport.connect import transport_for
from llmproxy.transport.never_called import is_forbidden

log = logging.getLogger("llmproxy")

FIRST_LOOK = 3.0  # seconds that is waited for servers that have to be found
UNLIMITED = sys.maxsize
Watch = Callable[[], Coroutine[None, None, None]]


@dataclass(slots=True)
class Engines:
    """What decides in one event loop, and the parts of the chain that ask it."""

    registry: Registry
    discovery: Discovery
    health: Health
    store: Store
    local: Store  # stands in for the store while that is away; the same in memory
    issued: IssuedKeys
    configured: ConfiguredKeys
    authenticator: Authenticator | None
    limiter: Limiter
    parts: tuple[Part, ...] = field(default=())
    watches: list[Watch] = field(default_factory=list)
    closing: list[Callable[[], None]] = field(default_factory=list)
    _watching: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Begin to watch what changes and to renew what must be renewed."""
        self._watching = [asyncio.create_task(watch()) for watch in self.watches]
        for task in self._watching:
            task.add_done_callback(_tell_of_an_end)
        await self.store.start()

    async def first_look(self) -> None:
        """Return once every source of servers was asked, or has been silent for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK):
                await self.discovery.first_look()

    async def look_again(self) -> None:
        """Have a model looked for that nobody seems to have."""
        if not self.registry.servers:
            await self.first_look()
        await self.health.refresh()

    async def aclose(self) -> None:
        """Settle what is open, then let go of everything."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self.health.close()
        for close in self.closing:
            close()
        if self.authenticator is not None:
            await self.authenticator.aclose()
        await self.limiter.aclose()
        await self.store.aclose()
        await self.registry.aclose()


def _tell_of_an_end(watch: asyncio.Task[None]) -> None:
    """Say that something is no longer watched: it would only go stale, and nobody would know."""
    if not watch.cancelled() and (fault := watch.exception()) is not None:
        log.error("what watches the servers has failed", exc_info=fault)


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
    parts = [part_named(name, engines, settings, metrics) for name in settings.chain]
    if settings.max_inflight or ("routing" in settings.chain and _all_limited(settings)):
        # Who has waited for a place is sent on its way then, and keeps the place for as many
        # attempts as that takes.
        at = settings.chain.index("routing") if "routing" in settings.chain else len(parts)
        parts.insert(at, _admission(settings, metrics, place, registry))
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


def part_named(name: str, engines: Engines, settings: Settings, metrics: Metrics) -> Part:
    """Return what one name in LLMPROXY_MIDDLEWARE stands for."""
    if name == "auth":
        assert engines.authenticator is not None
        return _auth(engines.authenticator)
    if name == "rate_limit":
        return _limits(engines.limiter)
    if name == "routing":
        return _routing(engines, settings, metrics)
    return Part(layer=layer_named(name))


def _auth(authenticator: Authenticator) -> Part:
    return Part(
        gate=lambda app: AuthMiddleware(app, authenticator=authenticator),
        layer=PermissionMiddleware,
    )


def _limits(limiter: Limiter) -> Part:
    """Return the part that holds callers to their limits."""
    return Part(layer=lambda app: RateLimitMiddleware(app, limiter=limiter), usage=True)


def _routing(engines: Engines, settings: Settings, metrics: Metrics) -> Part:
    """Return the part that finds a server for each request, and have the servers watched."""

    registry, health = engines.registry, engines.health
    prices = PriceList(settings.prices)
    aliases = Aliases(settings.aliases, price=lambda model: _price_of(prices, model))
    router = Router(
        registry,
        choosing=settings.routing,
        aliases=aliases,
        fallbacks=Fallbacks(settings.fallbacks),
        rules=Rules(settings.rules),
        retries=settings.retries,
    )
    catalogue = Catalogue(registry, aliases=aliases.names, refresh=engines.look_again)
    means = Means(
        router=router,
        refresh=engines.look_again,
        places=Places(
            most=part_of(settings.queue_size, settings.workers, 0),
            within=settings.queue_timeout,
        ),
        room=Room(),
        rescue=settings.rescue,
        first_token=settings.first_token_limit,
        total=settings.timeout_total,
        metrics=metrics,
    )
    engines.watches += [health.watch, LoadWatch(registry).run]
    return Part(layer=lambda app: RoutingMiddleware(app, means=means, catalogue=catalogue))


def _price_of(prices: PriceList, model: str) -> float | None:
    """Return what a token in and a token out cost; None when nobody has said."""
    price = prices.price(model, clock.wall())
    return price.both if price is not None else None


def _admission(settings: Settings, metrics: Metrics, place: int, registry: Registry) -> Part:
    """Return the queue in front of the servers: as many places as they have between them."""
    own = part_of(settings.max_inflight, settings.workers, place) or UNLIMITED

    def places() -> int:
        most = [server.most for server in registry.servers]
        return min(own, sum(most)) if most and all(most) else own

    admission = Admission(
        max_inflight=places(),
        queue_size=part_of(settings.queue_size, settings.workers, place),
        queue_timeout=settings.queue_timeout,
    )
    registry.on_change.append(lambda: admission.resize(places()))
    return Part(
        layer=lambda app: AdmissionMiddleware(
            app, admission=admission, metrics=metrics, total=settings.timeout_total
        ),
        usage=True,
    )


def _all_limited(settings: Settings) -> bool:
    """Tell whether every server has a limit, so that all of them together have one."""
    return bool(settings.upstreams) and all(each.max_inflight for each in settings.upstreams)


def layer_named(name: str) -> Layer:
    """Return a layer of the operator's own, by `package.module:Class`."""
    module, _, attribute = name.partition(":")
    layer: Layer = getattr(importlib.import_module(module), attribute)
    return layer

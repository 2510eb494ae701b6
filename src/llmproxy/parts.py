"""From settings and engines to the parts of the chain: one function per layer."""

import importlib
import sys

from llmproxy import clock
from llmproxy.auth.authenticator import Authenticator
from llmproxy.engines import Engines
from llmproxy.means import Means
from llmproxy.metering.prices import PriceList
from llmproxy.metrics import Metrics
from llmproxy.middleware.admission import AdmissionMiddleware
from llmproxy.middleware.auth import AuthMiddleware
from llmproxy.middleware.rate_limit import RateLimitMiddleware
from llmproxy.middleware.routing import RoutingMiddleware
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.queue import Admission, part_of
from llmproxy.routing.aliases import Aliases
from llmproxy.routing.catalogue import Catalogue
from llmproxy.routing.fallbacks import Fallbacks
from llmproxy.routing.kept import Room
from llmproxy.routing.load_watch import LoadWatch
from llmproxy.routing.places import Places
from llmproxy.routing.registry import Registry
from llmproxy.routing.router import Router
from llmproxy.routing.rules import Rules
from llmproxy.settings import Settings
from llmproxy.stack import Layer, Part

UNLIMITED = sys.maxsize


def chain_of(
    engines: Engines, settings: Settings, metrics: Metrics, place: int
) -> tuple[Part, ...]:
    """Return the parts as LLMPROXY_MIDDLEWARE names them, and the queue where one is needed."""
    parts = [part_named(name, engines, settings, metrics) for name in settings.chain]
    if settings.max_inflight or ("routing" in settings.chain and _all_limited(settings)):
        # Who has waited for a place is sent on its way then, and keeps the place for as many
        # attempts as that takes.
        at = settings.chain.index("routing") if "routing" in settings.chain else len(parts)
        parts.insert(at, _admission(settings, metrics, place, engines.registry))
    return tuple(parts)


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
    return Part(gate=lambda app: AuthMiddleware(app, authenticator=authenticator))


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
        comment=settings.keepalive_comments,
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

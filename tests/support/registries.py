"""Registries as the application makes them, without the application."""

from llmproxy.records import Upstream
from llmproxy.routing.registry import Registry
from llmproxy.routing.server import Server
from llmproxy.transport.connect import transport_for
from llmproxy.transport.interface import Transport

CONFIGURED = "configured"


def registry_of(*upstreams: Upstream, transport: Transport | None = None) -> Registry:
    """Return a registry of these, with a way of its own to each unless there is one to share."""
    registry = Registry(lambda upstream: Server(upstream, transport or transport_for(upstream)))
    registry.replace(CONFIGURED, upstreams)
    return registry

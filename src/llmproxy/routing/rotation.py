"""One server after the other."""

from llmproxy.errors import NoUpstream
from llmproxy.protocol.endpoints import serves
from llmproxy.records import Endpoint, InferenceRequest, Upstream
from llmproxy.routing.registry import Registry
from llmproxy.routing.server import Server


class Rotation:
    """Plain round robin over the servers that could answer."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._next = 0

    def choose(self, endpoint: Endpoint, raw_path: bytes, asked: InferenceRequest) -> Server:
        """Return the next server that serves the path, and the model if it says which it has."""
        servers = self._registry.servers
        count = len(servers)
        for step in range(count):
            server = servers[(self._next + step) % count]
            if not server.draining and could_answer(server.upstream, endpoint, raw_path, asked):
                self._next = (self._next + step + 1) % count
                return server
        raise NoUpstream("No model server is configured that could answer this request.")


def could_answer(
    upstream: Upstream, endpoint: Endpoint, raw_path: bytes, asked: InferenceRequest
) -> bool:
    """Tell whether an upstream is of the right kind."""
    if (endpoint.native or endpoint.management) and not serves(upstream, raw_path):
        return False
    return not upstream.models or asked.model is None or asked.model in upstream.models

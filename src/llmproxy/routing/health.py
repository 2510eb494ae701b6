"""What the upstreams answer when they are asked how they are."""

import asyncio

from llmproxy.metrics import Metrics
from llmproxy.routing.probe import Probe, probe
from llmproxy.routing.server import Server

FRESH = 2.0  # seconds that an answer is believed: readiness checks come in flocks
WITHIN = 3.0  # seconds that an upstream has to say how it is


class Health:
    """Probes when somebody wants to know, and never more than once at a time."""

    def __init__(self, servers: tuple[Server, ...], metrics: Metrics) -> None:
        self._servers = servers
        self._metrics = metrics
        self._probes: dict[str, Probe] = {}
        self._until = 0.0
        self._looking: asyncio.Task[dict[str, Probe]] | None = None

    async def look(self) -> dict[str, Probe]:
        """Return what is known of each upstream, at most `FRESH` seconds old."""
        if asyncio.get_running_loop().time() < self._until:
            return self._probes
        if self._looking is None:
            self._looking = asyncio.create_task(self._probe_all())
        # Shielded: one asker who leaves must not take the answer from the others.
        return await asyncio.shield(self._looking)

    def connections(self) -> dict[str, dict[str, int]]:
        """Return the state of each pool."""
        return {each.upstream.name: each.transport.statistics() for each in self._servers}

    def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()

    async def _probe_all(self) -> dict[str, Probe]:
        try:
            found = await asyncio.gather(
                *(probe(each.transport, each.upstream, within=WITHIN) for each in self._servers)
            )
            names = [each.upstream.name for each in self._servers]
            self._probes = dict(zip(names, found, strict=True))
            for name, result in self._probes.items():
                self._metrics.probed(name, result.ok)
            self._until = asyncio.get_running_loop().time() + FRESH
            return self._probes
        finally:
            self._looking = None

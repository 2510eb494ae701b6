"""Servers behind a service name: the SRV records of `_llm._tcp.example.com`.

Those of the best priority count; the others are for clients that find none of these. Weights are
taken over as they relate to each other.

Needs dnspython: pip install llmproxy[srv].
"""

import asyncio
import math
from collections.abc import Sequence

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver

from llmproxy.records import Upstream
from llmproxy.routing.discovery.source import LookFailed, Place, servers_at

EVERY = 10.0  # seconds
WITHIN = 5.0  # seconds for an answer


class ServiceSource:
    """Asks the name servers of this machine for the records of a name."""

    pause = EVERY

    def __init__(
        self, template: Upstream, *, resolver: dns.asyncresolver.Resolver | None = None
    ) -> None:
        self._template = template
        self._resolver = resolver

    async def look(self) -> Sequence[Upstream]:
        try:
            if self._resolver is None:
                # It reads the configuration of the system, and that is a file.
                self._resolver = await asyncio.to_thread(dns.asyncresolver.Resolver)
            answer = await self._resolver.resolve(
                self._template.host, "SRV", search=True, lifetime=WITHIN
            )
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return ()
        except dns.exception.Timeout:
            raise LookFailed(f"its name was not resolved within {WITHIN:g} s") from None
        except (dns.exception.DNSException, OSError) as exc:
            raise LookFailed(f"its name cannot be resolved now ({type(exc).__name__})") from exc
        # A target that is the root says that there is no such service.
        records = [record for record in answer if record.target != dns.name.root]
        best = min((record.priority for record in records), default=0)
        records = [record for record in records if record.priority == best]
        unit = math.gcd(*(max(1, record.weight) for record in records))
        return servers_at(
            self._template,
            (
                Place(
                    record.target.to_text(omit_final_dot=True).lower(),
                    record.port,
                    max(1, record.weight) // unit,
                )
                for record in records
            ),
        )

    async def aclose(self) -> None:
        """Nothing is held."""

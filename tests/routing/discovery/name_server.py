"""A name server on a real socket that knows what the test has told it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rrset


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers SRV questions."""

    port: int = 0
    records: dict[str, list[str]] = field(default_factory=dict)  # by name
    failing: bool = False
    asked: int = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's do not inherit from it.
        self._transport = cast("asyncio.DatagramTransport", transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        name = question.question[0].name.to_text(omit_final_dot=True)
        if self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif self.records[name]:
            answer.answer.append(
                dns.rrset.from_text_list(f"{name}.", 0, "IN", "SRV", self.records[name])
            )
        self._transport.sendto(answer.to_wire(), addr)

    @property
    def resolver(self) -> dns.asyncresolver.Resolver:
        """What asks this one, and nobody else."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        return resolver


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """Run a name server."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()

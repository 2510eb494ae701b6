"""Servers behind one name: each of its addresses is one."""

import asyncio
import socket
from collections.abc import Sequence

from llmproxy.records import Upstream
from llmproxy.routing.discovery.source import LookFailed, Place, servers_at
from llmproxy.transport.addresses import Resolve, resolve

EVERY = 10.0  # seconds
WITHIN = 5.0  # seconds for an answer

# The name has no address, or there is no such name: an answer, and not a failure to get one.
_NOBODY = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class AddressSource:
    """Asks the system for the addresses of a name."""

    pause = EVERY

    def __init__(self, template: Upstream, *, ask: Resolve = resolve) -> None:
        self._template = template
        self._ask = ask

    async def look(self) -> Sequence[Upstream]:
        host, port = self._template.host, self._template.port
        try:
            async with asyncio.timeout(WITHIN):
                found = await self._ask(host, port)
        except TimeoutError:
            raise LookFailed(f"its name was not resolved within {WITHIN:g} s") from None
        except socket.gaierror as exc:
            if exc.errno in _NOBODY:
                return ()
            raise LookFailed("its name cannot be resolved now") from exc
        except (OSError, UnicodeError) as exc:
            raise LookFailed("its name cannot be resolved") from exc
        # A machine with addresses of both kinds would else be two servers.
        old = [place for place in found if ":" not in place[0]]
        return servers_at(self._template, (Place(*address) for address in old or found))

    async def aclose(self) -> None:
        """Nothing is held."""

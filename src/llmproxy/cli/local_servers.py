"""What `serve` does when nobody has said where the model servers are: it looks on this machine."""

import asyncio
import sys


def upstreams_here(port: int) -> str:
    """Say which model servers were found; return them as LLMPROXY_UPSTREAMS has them.

    `port` is our own. Empty when there is none.
    """
    from llmproxy.protocol.presets import LOCAL, PRESETS
    from llmproxy.routing.discovery.local import local_servers

    entries = []
    for engine, at, models in asyncio.run(local_servers(besides=port)):
        known = PRESETS.get(engine)
        kind = engine if known is not None else "an OpenAI-compatible server"
        many = f"{models} model{'s' if models > 1 else ''}"
        print(f"llmproxy: found {kind} on port {at} with {many}", file=sys.stderr)
        name = engine if known is not None else "local"
        if known is None or known.port != at:
            name += f"-{at}"
        entries.append(f"{name}={engine}://{LOCAL}:{at}")
    return ",".join(entries)

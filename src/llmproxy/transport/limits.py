"""How many connections to one upstream, and for how long."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of one pool; seconds and counts."""

    connections: int = 0
    """Connections open at once; 0 = no limit."""

    queue: int = 1000
    """Calls that may wait for a connection; one more is refused at once."""

    queue_timeout: float = 30.0
    """How long a call waits for a connection."""

    keepalive: float = 4.0
    """How long an idle connection is kept. Below the 5 s after which every engine that runs
    on uvicorn closes it: a request that meets that close on its way is lost."""

    race: float = 0.05
    """An end that comes so soon after a request was sent, and one round trip, had set out before
    the request arrived: the server has had no time to work. The rest is for our own loop, which
    may be late to notice. What ends later is a failed attempt, and known as one."""

    max_age: float = 50.0
    """How old a connection may become before it is left for a new one. Together with the
    life of a resolved name this keeps a change of address from going unnoticed for a minute."""

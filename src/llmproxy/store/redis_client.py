"""redis-py, as far as it is used: a client for a place, one command, and what its errors mean.

Of its own it may try nothing again, time nothing out and tell the server nothing about itself:
that would hide from us whether a command was carried out.
"""

from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from llmproxy.store.urls import Place

CONNECT = 1.0  # seconds for a connection; nobody waits for it that long

Client = Redis | RedisCluster

# What a server says that will be over some time; anything else it would say again.
PASSING = (
    "OOM", "LOADING", "READONLY", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
    "NOREPLICAS", "MISCONF", "NOAUTH", "WRONGPASS", "NOPERM", "UNKILLABLE", "ERR max number",
)  # fmt: skip

FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)

# How a server before 7 begins when a script has met one of these; it itself comes behind a dash.
IN_A_SCRIPT, DASH = "Error running script", ": -"

__all__ = ["FAILURES", "NoScriptError", "close", "command", "new_client", "will_pass"]


def new_client(place: Place) -> Client:
    """Return a client that has no connection yet."""
    options: dict[str, Any] = {
        "username": place.user,
        "password": place.password,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT,
    }
    if place.tls:
        options |= {
            "ssl": True,
            "ssl_ca_certs": place.ca,
            "ssl_certfile": place.cert,
            "ssl_keyfile": place.cert,
        }
    if place.kind == "redis+cluster":
        nodes = [ClusterNode(host, port) for host, port in place.hosts]
        return RedisCluster(startup_nodes=nodes, **options)
    options["db"] = place.db
    if place.kind == "redis+unix":
        return Redis(unix_socket_path=place.path, **options)
    if place.kind == "redis+sentinel":
        login = {"username": place.sentinel_user, "password": place.sentinel_password}
        own = {key: value for key, value in options.items() if key not in ("db", *login)}
        own |= {**login, "socket_timeout": CONNECT}
        finder = Sentinel(place.hosts, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
        found: Redis = finder.master_for(place.service, **options)
        return found
    ((host, port),) = place.hosts
    return Redis(host=host, port=port, **options)


async def command(client: Client, *words: bytes | str | int) -> object:
    """Send one command and return the answer."""
    return await client.execute_command(*words)


async def close(client: Client) -> None:
    """Close all of its connections, whatever they are waiting for."""
    await client.aclose()
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def will_pass(error: Exception) -> bool:
    """Tell whether it may be over the next time: an outage is, a fault of the call is not."""
    if isinstance(error, ResponseError) and not isinstance(error, AuthenticationError):
        said = str(error)
        if said.startswith(IN_A_SCRIPT):
            said = said.rpartition(DASH)[2]
        return type(error) is not ResponseError or said.startswith(PASSING)
    return True

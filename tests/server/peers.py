"""nginx and HAProxy with hardly any configuration, as second opinions."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port
from tests.support.process import answering, running
from tests.support.upstream import Exchange, scripted

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def nginx_config(folder: Path, port: int, engine: int) -> str:
    """Return what nginx needs to pass everything on."""
    return f"""\
daemon off; master_process off; worker_processes 1;
pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
    fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    large_client_header_buffers 8 32k; client_body_timeout 1s; client_header_timeout 1s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{engine}; }}
    }}
}}
"""


def haproxy_config(folder: Path, port: int, engine: int) -> str:
    """Return what HAProxy needs to pass everything on; it looks at whole bodies too."""
    return f"""\
global
    tune.bufsize 65536
    tune.http.maxhdr 256
defaults
    mode http
    option http-buffer-request
    option httpclose
    timeout connect 10s
    timeout client 10s
    timeout server 10s
    timeout http-request 10s
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server engine 127.0.0.1:{engine}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that many people trust."""

    name: str
    arguments: Callable[[str], list[str]]
    config: Callable[[Path, int, int], str]

    @property
    def program(self) -> str | None:
        """Where it is installed."""
        return shutil.which(self.name, path=_PATH)


NGINX = Peer("nginx", lambda file: ["-c", file], nginx_config)
HAPROXY = Peer("haproxy", lambda file: ["-db", "-q", "-f", file], haproxy_config)


async def _answer_once(exchange: Exchange) -> None:
    try:
        await exchange.request()
    except (AssertionError, ValueError):
        exchange.close()  # the peer passed nonsense on
        return
    exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    exchange.close()


@asynccontextmanager
async def running_peer(peer: Peer, folder: Path) -> AsyncIterator[int]:
    """Run a peer in front of an engine that answers everything; yields its port."""
    assert peer.program is not None
    async with scripted(_answer_once) as engine:
        port = free_port()
        file = folder / f"{peer.name}.conf"
        text = peer.config(folder, port, engine.upstream.port)
        await asyncio.to_thread(file.write_text, text)
        async with running([peer.program, *peer.arguments(str(file))]) as process:
            await answering(process, port)
            yield port

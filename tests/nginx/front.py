"""Run the shipped nginx files under a real nginx.

Rule 1: what is tested is what is shipped. The files are used as they are, apart from
replacements that name the exact line and fail when it is not there exactly so often.
Rule 2: nothing sleeps. nginx says in its log when it listens and when it has reloaded.
"""

import asyncio
import os
import re
import shutil
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tests.support.ports import free_ports

SHIPPED = Path(__file__).parents[2] / "nginx"
NAME = "llm.example.com"  # as in llmproxy.conf
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
PATIENCE = 10.0  # seconds: only a broken nginx needs them

# The http context as Debian 12 ships it: the files have to hold their own in there.
MAIN = """\
{user}
worker_processes 1;
pid {root}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;

    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    types {{ text/html html; application/json json; }}
    default_type application/octet-stream;
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;
    access_log {root}/access.log;
    gzip on;
    include conf.d/*.conf;
}}
"""


def replaced(text: str, old: str, new: str, *, times: int = 1) -> str:
    """Return `text` with `old` replaced, which must be in there exactly `times` times."""
    found = text.count(old)
    assert found == times, f"{old!r} is in the shipped file {found} times, not {times}"
    return text.replace(old, new)


def switched_on(text: str, *directives: str) -> str:
    """Take the `#` off the lines that are exactly `#directive`."""
    for directive in directives:
        text = replaced(text, f"    #{directive}\n", f"    {directive}\n")
    return text


@dataclass(slots=True)
class Certificates:
    """A CA for the server, one for its clients, and one that nobody trusts."""

    server_ca: trustme.CA = field(default_factory=trustme.CA)
    clients_ca: trustme.CA = field(default_factory=trustme.CA)
    strange_ca: trustme.CA = field(default_factory=trustme.CA)

    def client_context(
        self, *, certificate: trustme.LeafCert | None = None, alpn: Sequence[str] = ("http/1.1",)
    ) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.server_ca.configure_trust(context)
        context.set_alpn_protocols(list(alpn))
        if certificate is not None:
            certificate.configure_cert(context)
        return context

    def revocation_list(self, *revoked: trustme.LeafCert) -> bytes:
        """Return the list in which the clients' CA withdraws these certificates."""
        ca = x509.load_pem_x509_certificate(self.clients_ca.cert_pem.bytes())
        key = load_pem_private_key(self.clients_ca.private_key_pem.bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        now = datetime.now(UTC)
        entries = x509.CertificateRevocationListBuilder(
            ca.subject, last_update=now - timedelta(days=1), next_update=now + timedelta(days=1)
        )
        for leaf in revoked:
            certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
            entries = entries.add_revoked_certificate(
                x509.RevokedCertificateBuilder(certificate.serial_number, now).build()
            )
        return entries.sign(key, SHA256()).public_bytes(Encoding.PEM)


@dataclass(slots=True)
class Front:
    """A directory that nginx runs from, and nginx running from it."""

    root: Path
    port: int
    plain_port: int  # port 80 of llmproxy.conf; the only port of plain.conf
    log: list[str] = field(default_factory=list)
    process: asyncio.subprocess.Process | None = None
    _ended: bool = False
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run the nginx command on this directory; return its exit code and what it said."""
        process = await self._start(*arguments)
        _, said = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode is not None
        return process.returncode, said.decode()

    async def logged(self, pattern: str, *, times: int = 1) -> list[str]:
        """Wait until so many lines of nginx' log match; return them."""

        def matching() -> list[str]:
            return [line for line in self.log if re.search(pattern, line)]

        def settled() -> bool:
            return self._ended or len(matching()) >= times

        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(settled)
        assert len(matching()) >= times, f"nginx ended without {pattern!r}:\n" + "\n".join(self.log)
        return matching()

    async def reload(self) -> None:
        """Load the files anew, as an operator would; return when the new workers are there."""
        workers = len([line for line in self.log if "start worker process " in line])
        code, said = await self.run("-s", "reload")
        assert code == 0, said
        await self.logged("start worker process ", times=workers + 1)
        await self.logged("gracefully shutting down")

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Front"]:
        self.process = await self._start("-g", "daemon off;")
        listener = asyncio.create_task(self._listen(self.process))
        try:
            await self.logged("start worker process ")
            yield self
        finally:
            if self.process.returncode is None:
                self.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(self.process.wait(), PATIENCE)
            await listener

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        assert NGINX is not None
        return await asyncio.create_subprocess_exec(
            NGINX,
            *("-p", str(self.root), "-c", str(self.root / "nginx.conf"), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            async with self._news:
                self.log.append(line.decode().rstrip())
                self._news.notify_all()
        async with self._news:
            self._ended = True
            self._news.notify_all()


def lay_out(root: Path, name: str, text: str, *, port: int, plain_port: int) -> Front:
    """Put a rendered file and the shipped snippets where an operator would."""
    (root / "conf.d").mkdir()
    shutil.copytree(SHIPPED / "snippets", root / "snippets")
    (root / "conf.d" / name).write_text(text)
    user = "user root root;" if os.geteuid() == 0 else ""
    (root / "nginx.conf").write_text(MAIN.format(user=user, root=root))
    return Front(root, port, plain_port)


def render_public(
    root: Path,
    upstream: str,
    certificates: Certificates,
    *,
    switch_on: Sequence[str] = (),
    changes: Mapping[str, str] = MappingProxyType({}),
) -> Front:
    """Make `llmproxy.conf` run in `root`, with some commented lines on or some lines changed."""
    port, port6, plain, plain6 = free_ports(4)
    text = switched_on((SHIPPED / "llmproxy.conf").read_text(), *switch_on)
    for old, new in changes.items():
        text = replaced(text, old, new)
    text = replaced(text, "    server unix:/run/llmproxy/llmproxy.sock;", f"    server {upstream};")
    # Hosts without IPv6 run the tests too: the second address family becomes a second port.
    text = replaced(text, "listen 443 ssl", f"listen 127.0.0.1:{port} ssl", times=2)
    text = replaced(text, "listen [::]:443 ssl", f"listen 127.0.0.1:{port6} ssl", times=2)
    text = replaced(text, "listen 80;", f"listen 127.0.0.1:{plain};")
    text = replaced(text, "listen [::]:80;", f"listen 127.0.0.1:{plain6};")
    text = replaced(text, "root /var/www/html;", f"root {root}/html;")
    text = replaced(text, "/var/log/nginx/llmproxy.log", f"{root}/llmproxy.log")
    for file in ("fullchain", "privkey", "clients-ca", "clients-crl"):
        text = replaced(text, f"/etc/ssl/llmproxy/{file}.pem", f"{root}/{file}.pem")

    own = certificates.server_ca.issue_cert(NAME)
    own.private_key_pem.write_to_path(root / "privkey.pem")
    for part in own.cert_chain_pems:
        part.write_to_path(root / "fullchain.pem", append=True)
    certificates.clients_ca.cert_pem.write_to_path(root / "clients-ca.pem")
    return lay_out(root, "llmproxy.conf", text, port=port, plain_port=plain)


def render_plain(root: Path, upstream: str, *, switch_on: Sequence[str] = ()) -> Front:
    """Make `plain.conf` run in `root`, with some commented lines switched on."""
    port, port6 = free_ports(2)
    text = switched_on((SHIPPED / "plain.conf").read_text(), *switch_on)
    text = replaced(text, "    server unix:/run/llmproxy/llmproxy.sock;", f"    server {upstream};")
    text = replaced(text, "listen 8080;", f"listen 127.0.0.1:{port};")
    text = replaced(text, "listen [::]:8080;", f"listen 127.0.0.1:{port6};")
    return lay_out(root, "plain.conf", text, port=port, plain_port=port)


@asynccontextmanager
async def directory() -> AsyncIterator[Path]:
    """A fresh directory with a path short enough for a unix socket (107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-nginx-") as name:
        yield Path(name)

"""Certificates that only this test run believes in."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority and what it has signed, as files and as contexts."""

    ca: trustme.CA
    folder: Path

    @property
    def file(self) -> str:
        """The authority's own certificate."""
        path = self.folder / "ca.pem"
        if not path.exists():
            self.ca.cert_pem.write_to_path(str(path))
        return str(path)

    def server(self, *names: str) -> ssl.SSLContext:
        """Return what a server of these names presents."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context

    def demanding_server(self, *names: str) -> ssl.SSLContext:
        """Return what a server presents that wants a certificate of this authority back."""
        context = self.server(*names)
        context.verify_mode = ssl.CERT_REQUIRED
        self.ca.configure_trust(context)
        return context

    def client_file(self, name: str) -> str:
        """Return a file with a client's key and certificate."""
        path = self.folder / f"{name}.pem"
        self.ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)

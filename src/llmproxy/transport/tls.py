"""The TLS side of a connection to an upstream."""

import ssl

from llmproxy.records import Upstream


def tls_for(upstream: Upstream) -> ssl.SSLContext | None:
    """Return the context for an https upstream, None for every other.

    Certificates are always verified: against the system's authorities, or against the
    upstream's own `ca` file alone.
    """
    if upstream.scheme != "https":
        return None
    context = ssl.create_default_context(cafile=upstream.ca)
    if upstream.cert is not None:
        context.load_cert_chain(upstream.cert)
    return context

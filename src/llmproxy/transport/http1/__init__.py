"""HTTP/1.1 on `asyncio.Protocol` and httptools: the transport of the data path."""

from llmproxy.transport.http1.client import Http1Transport

__all__ = ["Http1Transport"]

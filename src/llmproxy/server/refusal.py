"""What a client is told whose request is not even begun."""

import logging
import os
from http import HTTPStatus

from llmproxy import codec
from llmproxy.types import Header

log = logging.getLogger("llmproxy.server")


class Refusal(Exception):
    """Why a request is not even begun."""

    def __init__(
        self, status: int, code: str, message: str, headers: tuple[Header, ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def answer(self, date: bytes, name: str | None) -> bytes:
        """Return a whole answer that says no and closes; `name` is the request's, if it has one."""
        if name is None:
            # It is in no log of requests. It is told here, to those who look for it; others could
            # fill a disk with it.
            name = os.urandom(16).hex()
            log.debug("refused: %d, %s", self.status, self.message, extra={"request_id": name})
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        body = codec.dumps({"error": error})
        extra = b"".join(b"%b: %b\r\n" % header for header in self.headers)
        return b"".join(
            (
                b"HTTP/1.1 %d %b\r\n" % (self.status, HTTPStatus(self.status).phrase.encode()),
                date,
                b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
                b"x-request-id: %b\r\n" % name.encode(),
                extra,
                b"connection: close\r\n\r\n",
                body,
            )
        )

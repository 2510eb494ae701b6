"""The way back to the one who asked."""

from dataclasses import dataclass

from llmproxy import codec
from llmproxy.types import Send


class Wrong(Exception):
    """The request cannot be answered."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """The way back to the one who asked."""

    send: Send

    async def json(self, body: object, status: int = 200) -> None:
        """Send one JSON document."""
        content = codec.dumps(body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content, "more_body": False})

    async def begin_stream(self) -> None:
        """Say that events follow."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, data: object) -> None:
        """Send one event."""
        await self._part(b"data: " + codec.dumps(data) + b"\n\n", more=True)

    async def done(self) -> None:
        """Send the last event and end the stream."""
        await self._part(b"data: [DONE]\n\n", more=False)

    async def _part(self, body: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

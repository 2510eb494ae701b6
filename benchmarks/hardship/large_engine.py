"""An engine that takes large bodies and gives large answers.

    python -m benchmarks.hardship.large_engine

It prints its port. By the path that is asked: a chat gets a word or a short stream, embeddings get
16 MiB of JSON, and completions get a stream with one event of 16 MiB in it.
"""

import asyncio
import gc
from typing import cast

import uvloop

SIZE = 16 * 1024 * 1024  # bytes
READ = 1024 * 1024  # bytes that one read brings at most

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
JSON, EVENTS = b"application/json", b"text/event-stream"
USAGE = b'"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}'
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
WORD = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"no"}}],%b}' % USAGE
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":"stop"}]}\n\n'
LAST = b'data: {"choices":[],%b}\n\ndata: [DONE]\n\n' % USAGE
NUMBERS = b"0.0123456789," * (SIZE // 13) + b"0"


def answer(kind: bytes, *pieces: bytes) -> list[bytes]:
    """Return a whole answer in its pieces."""
    return [HEAD % (kind, sum(map(len, pieces))), *pieces]


ANSWERS = {
    b"/v1/models": answer(JSON, MODELS),
    b"/v1/chat/completions": answer(JSON, WORD),
    b"/v1/embeddings": answer(JSON, b'{"data":[{"embedding":[', NUMBERS, b"]}],", USAGE, b"}"),
    b"/v1/completions": answer(EVENTS, EVENT % (b"x" * SIZE), LAST),
}
SHORT_STREAM = answer(EVENTS, EVENT % b"no", LAST)
NOTHING = [b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"]


class Engine(asyncio.BufferedProtocol):
    """One connection, one request after the other."""

    def __init__(self) -> None:
        self._landing = memoryview(bytearray(READ))
        self._head = b""
        self._left = 0  # bytes of the body that are to come
        self._answer: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._landing

    def buffer_updated(self, nbytes: int) -> None:
        if self._left:
            self._left -= nbytes
        else:
            self._head += self._landing[:nbytes].tobytes()
            head, blank, body = self._head.partition(b"\r\n\r\n")
            if not blank:
                return
            self._begin(head, body)
        if not self._left:
            self._transport.writelines(self._answer)

    def _begin(self, head: bytes, body: bytes) -> None:
        self._head = b""
        first, *fields = head.lower().split(b"\r\n")
        said = [each for each in fields if each.startswith(b"content-length:")]
        self._left = int(said[0].partition(b":")[2]) - len(body) if said else 0
        path = first.split(b" ")[1]
        self._answer = ANSWERS.get(path, NOTHING)
        if path.endswith(b"/chat/completions") and b'"stream":true' in body[:200]:
            self._answer = SHORT_STREAM


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Engine, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())

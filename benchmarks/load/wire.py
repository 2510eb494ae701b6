"""The bytes of the benchmark: what clients ask, what the model server answers, and the check
that a proxy in between has lost, doubled, reordered or mixed up nothing.

Each request carries a number, and everything that answers it repeats that number. Each chunk
also carries its place and the time it left the model server, on the clock that all processes of
one machine share; so the way of every single chunk can be timed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# Layers that know keys are given this one; others ignore it. LiteLLM starts with no weaker one.
KEY = "sk-bench-" + hashlib.sha256(b"llmproxy").hexdigest()
MODEL = "bench"
LAST_CHUNK = b"0\r\n\r\n"

# The script stands in the text of the question: it is the one place that no router rewrites.
_BODY = (
    '{"model":"bench","messages":[{"role":"system","content":"You are a helpful assistant. Answer '
    'in short sentences, and say so when you do not know."},{"role":"user","content":"Request '
    "%08d, %d chunks, %d ms apart: explain to a newcomer why a reverse proxy in front of several "
    'model servers should never hold back a token that it has already got."}],"max_tokens":%d,'
    '"temperature":0,"stream":%s}'
)
_HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\n"
    "user-agent: llmproxy-bench\r\nauthorization: Bearer %s\r\n"
    "content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)

_EVENT = (
    b'data: {"id":"chatcmpl-5f0c6a1e9b7d4c2f","object":"chat.completion.chunk",'
    b'"created":1760000000,"model":"bench","choices":[{"index":0,"delta":%s,'
    b'"logprobs":null,"finish_reason":%s}]}\n\n'
)
CONTENT = _EVENT % (b'{"content":"%08d.%05d@%018d "}', b"null")
FINISH = _EVENT % (b"{}", b'"stop"')
USAGE = (
    b'data: {"id":"chatcmpl-5f0c6a1e9b7d4c2f","object":"chat.completion.chunk",'
    b'"created":1760000000,"model":"bench","choices":[],"usage":{"prompt_tokens":57,'
    b'"completion_tokens":%d,"total_tokens":%d}}\n\n'
)
DONE = b"data: [DONE]\n\n"

_ANSWER = (
    b'{"id":"chatcmpl-5f0c6a1e9b7d4c2f","object":"chat.completion","created":1760000000,'
    b'"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"'
    b"%08d: because the client is waiting for it. A token that lies in a buffer costs the reader "
    b"patience and the proxy memory, and it makes the engine look slower than it is. Pass it on "
    b'as it comes, and count it when the stream is over.","refusal":null},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":57,"completion_tokens":48,'
    b'"total_tokens":105},"system_fingerprint":"fp_bench"}'
)

_CONTENT_PARTS = re.compile(r"(\d{8})\.(\d{5})@(\d{18}) ")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)


class WrongAnswerError(Exception):
    """What arrived is not what the model server sent; the run does not count."""


def request(number: int, *, chunks: int = 48, gap_ms: int = 0, stream: bool = False) -> bytes:
    """A chat request that tells the model server what to do."""
    body = _BODY % (number, chunks, gap_ms, chunks, "true" if stream else "false")
    return (_HEAD % (KEY, len(body)) + body).encode()


def answer(number: int) -> bytes:
    """The body of an answer that does not stream."""
    return _ANSWER % number


def framed(payload: bytes) -> bytes:
    """One chunk of the chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def content_frame() -> bytes:
    """The template of a framed chunk, to be filled with number, place and time."""
    return framed(CONTENT % (0, 0, 0)).partition(b"data:")[0] + CONTENT + b"\r\n"


class Dechunker:
    """Takes the chunked encoding off a body that arrives in arbitrary pieces."""

    def __init__(self) -> None:
        self.complete = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        self._held += data
        payload: list[bytes] = []
        while not self.complete:
            line, newline, rest = self._held.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16) if newline else 0
            if not newline or len(rest) < size + 2:
                break
            if rest[size : size + 2] != b"\r\n":
                raise WrongAnswerError("the chunked encoding is broken")
            payload.append(rest[:size])
            self._held = rest[size + 2 :]
            self.complete = size == 0
        if self.complete and self._held:
            raise WrongAnswerError("bytes follow the end of the body")
        return b"".join(payload)


def is_complete(response: bytes) -> bool:
    """Whether a response to a plain request has arrived to its last byte."""
    head_end = response.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    length = _LENGTH.search(response, 0, head_end)
    if length:
        return len(response) >= head_end + 4 + int(length[1])
    return response.endswith(LAST_CHUNK)


def check_answer(response: bytes, number: int) -> None:
    """Refuse an answer that is not the one to request `number`."""
    head, body = _parted(response)
    if _CHUNKED.search(head):
        dechunker = Dechunker()
        body = dechunker.feed(body)
        if not dechunker.complete:
            raise WrongAnswerError("the answer is cut short")
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise WrongAnswerError(f"not a chat completion: {body[:120]!r}") from exc
    if text != json.loads(answer(number))["choices"][0]["message"]["content"]:
        raise WrongAnswerError(f"not the answer to request {number}: {text[:60]!r}")


@dataclass(slots=True)
class StreamTimes:
    """When each chunk of one stream left the model server and reached the client, in ns."""

    sent: list[int] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)


def check_stream(
    reads: Iterable[tuple[int, bytes]], number: int, chunks: int, gap_ms: int
) -> StreamTimes:
    """Read a recorded stream (time and bytes of each read) and refuse it unless it is whole."""
    times = StreamTimes()
    finished = done = False
    for arrived, event in _events(reads):
        if done:
            raise WrongAnswerError("an event follows [DONE]")
        if event == b"[DONE]":
            done = True
            continue
        for choice in json.loads(event).get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                parts = _CONTENT_PARTS.fullmatch(text)
                if not parts:
                    raise WrongAnswerError(f"an altered chunk: {text!r}")
                if (int(parts[1]), int(parts[2])) != (number, len(times.sent)):
                    raise WrongAnswerError(
                        f"chunk {len(times.sent)} of stream {number} expected, got {text!r}"
                    )
                times.sent.append(int(parts[3]))
                times.arrived.append(arrived)
            finished = finished or choice.get("finish_reason") == "stop"
    if len(times.sent) != chunks or not finished or not done:
        raise WrongAnswerError(
            f"stream {number} is cut short: {len(times.sent)} of {chunks} chunks, "
            f"finish reason {'seen' if finished else 'missing'}, "
            f"[DONE] {'seen' if done else 'missing'}"
        )
    if times.sent[-1] - times.sent[0] < ((chunks - 1) * gap_ms - 2) * 1_000_000:
        raise WrongAnswerError(f"stream {number} came faster than asked: its script was lost")
    return times


def _events(reads: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The data of each server-sent event, with the time of the read that completed it."""
    head: bytes | None = None
    held = b""
    dechunker: Dechunker | None = None
    for arrived, data in reads:
        if head is None:
            held += data
            if b"\r\n\r\n" not in held:
                continue
            head, data = _parted(held)
            held = b""
            dechunker = Dechunker() if _CHUNKED.search(head) else None
        held += dechunker.feed(data) if dechunker else data
        *whole, held = held.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data:"):
                yield arrived, event[5:].strip()
    if head is None:
        raise WrongAnswerError("no answer")
    if held or (dechunker and not dechunker.complete):
        raise WrongAnswerError("the body ends in the middle of an event or of its framing")


def _parted(response: bytes) -> tuple[bytes, bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise WrongAnswerError(f"not a 200: {head[:80]!r} {body[:160]!r}")
    return head, body

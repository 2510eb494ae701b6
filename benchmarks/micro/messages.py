"""What goes over the wire in the benchmarks: a client as openai's library, an engine as vLLM."""

import orjson

from llmproxy.records import Upstream
from llmproxy.transport import Outgoing
from llmproxy.types import Header

UPSTREAM = Upstream(name="gpu1", scheme="http", host="127.0.0.1", port=8000)
PATH = b"/v1/chat/completions"

# What a client sends

QUESTION: bytes = orjson.dumps(
    {
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Which is the longest river of Europe? " * 4},
        ],
        "temperature": 0.7,
        "max_tokens": 256,
    }
)
STREAM_QUESTION = QUESTION[:-1] + b',"stream":true}'
LONG_QUESTION: bytes = orjson.dumps(
    {
        "messages": [{"role": "user", "content": "All of it, \u201cword by word\u201d. " * 40_000}],
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "stream": True,
    }
)
CLIENT_HEADERS: list[Header] = [
    (b"host", b"llm.example.com"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"OpenAI/Python 2.7.1"),
    (b"content-type", b"application/json"),
    (b"authorization", b"Bearer sk-0123456789abcdef0123456789abcdef"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-package-version", b"2.7.1"),
    (b"x-stainless-os", b"Linux"),
    (b"x-stainless-arch", b"x64"),
    (b"x-stainless-runtime", b"CPython"),
    (b"x-stainless-runtime-version", b"3.11.9"),
    (b"x-stainless-async", b"false"),
    (b"x-stainless-retry-count", b"0"),
    (b"content-length", b"%d" % len(QUESTION)),
]


def request_bytes(body: bytes = QUESTION) -> bytes:
    """Return a request as it comes in."""
    fields = dict(CLIENT_HEADERS) | {b"content-length": b"%d" % len(body)}
    lines = b"".join(b"%b: %b\r\n" % field for field in fields.items())
    return b"POST %b HTTP/1.1\r\n%b\r\n%b" % (PATH, lines, body)


# What we make of it

OUTGOING = Outgoing(
    method=b"POST",
    target=PATH,
    headers=[
        (b"host", b"127.0.0.1:8000"),
        *(field for field in CLIENT_HEADERS if field[0].startswith((b"accept", b"x-", b"user"))),
        (b"content-type", b"application/json"),
        (b"x-request-id", b"0123456789abcdef0123456789abcdef"),
        (b"via", b"1.1 llmproxy-0123456789ab"),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"llm.example.com"),
    ],
    body=QUESTION,
)

# What an engine sends

ANSWER: bytes = orjson.dumps(
    {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The Volga, with 3,531 km. " * 8},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 52, "completion_tokens": 64, "total_tokens": 116},
    }
)
ANSWER_HEADERS: list[Header] = [
    (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT"),
    (b"server", b"uvicorn"),
    (b"content-length", b"%d" % len(ANSWER)),
    (b"content-type", b"application/json"),
]
STREAM_HEADERS: list[Header] = [
    (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT"),
    (b"server", b"uvicorn"),
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"transfer-encoding", b"chunked"),
]
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1760000000,"model":"meta-llama/Llama-3.3-70B-Instruct","choices":[{"index":0,'
    b'"delta":{"content":" river"},"logprobs":null,"finish_reason":null}]}\n\n'
)
LAST_CHUNK = b"data: [DONE]\n\n"
RESPONSES_CHUNK = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
    b'"sequence_number":17,"item_id":"msg_0123456789abcdef","output_index":0,'
    b'"content_index":0,"delta":" river"}\n\n'
)


def head_bytes(headers: list[Header]) -> bytes:
    """Return the head of an answer as it comes in."""
    return b"HTTP/1.1 200 OK\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % field for field in headers)


def in_chunks(data: bytes) -> bytes:
    """Return data as a part of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


ANSWER_BYTES = head_bytes(ANSWER_HEADERS) + ANSWER
LAST_BYTES = b"0\r\n\r\n"

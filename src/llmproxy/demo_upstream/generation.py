"""Chat and completions: a text that repeats the question, word by word."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from llmproxy.demo_upstream import MODEL
from llmproxy.demo_upstream.reply import Reply, Wrong

PAUSE = 0.03  # seconds between two words: about what a mid-sized model does
LONGEST_ECHO = 400  # words of the question that are repeated


async def chat(body: dict[str, Any], reply: Reply) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Wrong(
            400, "`messages` must be a list that is not empty.", "invalid_request", "messages"
        )
    prompt = [_text_of(message) for message in messages]
    asked = next(
        (
            text
            for message, text in zip(reversed(messages), reversed(prompt), strict=True)
            if isinstance(message, dict) and message.get("role") == "user"
        ),
        prompt[-1],
    )
    words = _about(asked)
    await _generate(body, reply, words, prompt_tokens=count_words(prompt), shape=_CHAT)


async def completion(body: dict[str, Any], reply: Reply) -> None:
    prompt = body.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Wrong(
            400, "`prompt` must be one text; the demo has no tokens.", "invalid_request", "prompt"
        )
    await _generate(
        body, reply, _about(prompt), prompt_tokens=count_words([prompt]), shape=_COMPLETION
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """How an endpoint wraps a text."""

    prefix: str
    whole: str
    chunk: str
    message: Callable[[str], dict[str, object]]
    delta: Callable[[str], dict[str, object]]
    first: dict[str, object] | None  # what comes before the first word
    last: dict[str, object]


_CHAT = Shape(
    prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    message=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    delta=lambda text: {"delta": {"content": text}},
    first={"delta": {"role": "assistant", "content": ""}},
    last={"delta": {}},
)
_COMPLETION = Shape(
    prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    message=lambda text: {"text": text},
    delta=lambda text: {"text": text},
    first=None,
    last={"text": ""},
)


async def _generate(
    body: dict[str, Any], reply: Reply, words: list[str], *, prompt_tokens: int, shape: Shape
) -> None:
    if body.get("n", 1) not in (1, None):
        raise Wrong(400, "The demo answers once: `n` must be 1.", "invalid_request", "n")
    limit = _limit(body)
    reason = "stop"
    if limit is not None and limit < len(words):
        words, reason = words[:limit], "length"
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(words),
        "total_tokens": prompt_tokens + len(words),
    }
    told = {"id": shape.prefix + uuid4().hex, "created": int(time.time()), "model": MODEL}

    if body.get("stream") is not True:
        await asyncio.sleep(PAUSE * len(words))
        choice = {
            "index": 0,
            **shape.message("".join(words)),
            "logprobs": None,
            "finish_reason": reason,
        }
        await reply.json({**told, "object": shape.whole, "choices": [choice], "usage": usage})
        return

    options = body.get("stream_options")
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    told["object"] = shape.chunk
    if with_usage:
        told["usage"] = None
    await reply.begin_stream()

    def chunk(part: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}
        return {**told, "choices": [choice]}

    if shape.first is not None:
        await reply.event(chunk(shape.first))
    for word in words:
        await asyncio.sleep(PAUSE)
        await reply.event(chunk(shape.delta(word)))
    await reply.event(chunk(shape.last, reason))
    if with_usage:
        await reply.event({**told, "choices": [], "usage": usage})
    await reply.done()


def _limit(body: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        limit = body.get(name)
        if limit is None:
            continue
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise Wrong(400, f"`{name}` must be a whole number above 0.", "invalid_request", name)
        return limit
    return None


def _about(asked: str) -> list[str]:
    """Return the answer word by word, the blank before each included."""
    repeated = asked.split()
    quoted = " ".join(repeated[:LONGEST_ECHO]) + (" ..." if len(repeated) > LONGEST_ECHO else "")
    text = (
        "This is the demo upstream of llmproxy. There is no model behind it, so all it can do"
        " is repeat what you asked:"
    )
    text += f" {quoted}" if quoted else " nothing."
    first, *rest = text.split()
    return [first, *(f" {word}" for word in rest)]


def _text_of(message: object) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    return ""


def count_words(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)

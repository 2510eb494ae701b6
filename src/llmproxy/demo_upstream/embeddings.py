"""Embeddings that mean nothing, and are always the same for the same text."""

import base64
import hashlib
import struct
from typing import Any

from llmproxy.demo_upstream import MODEL
from llmproxy.demo_upstream.generation import count_words
from llmproxy.demo_upstream.reply import Reply, Wrong

DIMENSIONS = 64
MOST_DIMENSIONS = 4096


async def embeddings(body: dict[str, Any], reply: Reply) -> None:
    inputs = body.get("input")
    if isinstance(inputs, str):
        inputs = [inputs]
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise Wrong(400, "`input` must be one text or a list of them.", "invalid_request", "input")
    size = body.get("dimensions", DIMENSIONS)
    if not isinstance(size, int) or not 1 <= size <= MOST_DIMENSIONS:
        raise Wrong(
            400,
            f"`dimensions` must be from 1 to {MOST_DIMENSIONS}.",
            "invalid_request",
            "dimensions",
        )
    as_base64 = body.get("encoding_format") == "base64"
    data = []
    for index, text in enumerate(inputs):
        numbers = vector(text, size)
        packed = struct.pack(f"<{size}f", *numbers)
        embedding = base64.b64encode(packed).decode() if as_base64 else numbers
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = count_words(inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    await reply.json({"object": "list", "data": data, "model": MODEL, "usage": usage})


def vector(text: str, size: int) -> list[float]:
    """Return a vector of length one that is always the same for the same text."""
    needed = size * 4
    noise = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(needed)
    numbers = [number / 2**31 - 1 for (number,) in struct.iter_unpack("<I", noise)]
    norm = sum(number * number for number in numbers) ** 0.5 or 1.0
    return [number / norm for number in numbers]

"""Reads the usage of a whole answer that says it as nearly all of them do.

Rule 1: the answer is read as JSON from its first byte to its last, so that what stands in a text
        or deeper inside is never taken for the count. What is not wanted is skipped, not built.
Rule 2: what is not of exactly this shape (another dialect, a number that makes no sense) is left
        to `usage_report`, which would make the same of what is.
"""

from typing import Annotated

import msgspec

from llmproxy.protocol.usage_report import MOST
from llmproxy.records import Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]


class _OfPrompt(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    cached_tokens: _Count | None = None
    audio_tokens: _Count | None = None


class _OfCompletion(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    reasoning_tokens: _Count | None = None
    audio_tokens: _Count | None = None
    accepted_prediction_tokens: _Count | None = None
    rejected_prediction_tokens: _Count | None = None


class _Counts(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count = 0
    prompt_tokens_details: _OfPrompt | None = None
    completion_tokens_details: _OfCompletion | None = None
    reasoning_tokens: _Count | None = None  # SGLang


class _Answer(msgspec.Struct, gc=False):
    usage: _Counts


_decode = msgspec.json.Decoder(_Answer).decode


def plain_usage(answer: bytes) -> Usage | None:
    """Return what an answer says it has used; None where it has to be read more closely."""
    try:
        said = _decode(answer).usage
    except (msgspec.DecodeError, RecursionError):
        return None
    if (
        said.prompt_tokens_details is None
        and said.completion_tokens_details is None
        and not said.reasoning_tokens
    ):
        return Usage(said.prompt_tokens, said.completion_tokens)
    return _detailed(said)


def _detailed(said: _Counts) -> Usage | None:
    prompt, completion = said.prompt_tokens, said.completion_tokens
    of_prompt, of_completion = said.prompt_tokens_details, said.completion_tokens_details
    cached, reasoning = 0, said.reasoning_tokens
    if of_prompt is not None:
        cached = of_prompt.cached_tokens or 0
    if of_completion is not None:
        if reasoning is not None:
            return None  # said in two places: which of them holds is not for us to know
        reasoning = of_completion.reasoning_tokens
    return Usage(prompt, completion, min(cached, prompt), min(reasoning or 0, completion))

"""What an engine's error answer says about trying again, as far as its words can be trusted.

Rule: the status decides first; words only tell apart what shares a status.
"""

import re
from enum import Enum, auto


class Complaint(Enum):
    """What an engine complains of."""

    FAILED = auto()  # it could not: 5xx
    BUSY = auto()  # it could, later: 429, or a queue that is full
    TOO_LONG = auto()  # the prompt does not fit into the context of the model
    OPTION = auto()  # it does not know an option that we have added
    FINAL = auto()  # everything else: this is the answer


# vLLM: "This model's maximum context length is 4096 tokens. However, you requested ..."; OpenAI
# has a code for it; SGLang: "The input (5000 tokens) is longer than the model's context length";
# llama.cpp: "the request exceeds the available context size"; TGI: "`inputs` tokens +
# `max_new_tokens` must be <= 4096"; Anthropic: "prompt is too long: 201000 tokens > 200000".
_TOO_LONG = re.compile(
    rb"context_length_exceeded|exceed_context_size|maximum context length"
    rb"|context (?:length|size|window)|longer than the (?:model|maximum)"
    rb"|prompt is too long|input is too long"
    rb"|`?inputs`? (?:tokens|must have less)",
    re.IGNORECASE,
)
_BUSY = re.compile(
    rb"queue (?:is )?full|overloaded|too many (?:requests|concurrent)"
    rb"|no slots? (?:is |are )?available|server (?:is )?busy|model is overloaded|at capacity",
    re.IGNORECASE,
)
_OPTION = re.compile(rb"stream_options|include_usage|extra (?:fields|inputs)", re.IGNORECASE)

_LOOK_AT = 4096  # bytes; the message stands at the beginning


def complaint_of(status: int, body: bytes, *, retry_after: bool) -> Complaint:
    """Return what an error answer means."""
    if status == 429:
        return Complaint.BUSY
    text = body[:_LOOK_AT]
    if status in (400, 413, 422):
        if _TOO_LONG.search(text):
            return Complaint.TOO_LONG
        return Complaint.OPTION if _OPTION.search(text) else Complaint.FINAL
    if status < 500 or status == 501:
        return Complaint.FINAL
    if status == 529 or (status == 503 and (retry_after or _BUSY.search(text))):
        return Complaint.BUSY  # 529 is Anthropic's own
    if status == 500 and _TOO_LONG.search(text):
        return Complaint.TOO_LONG  # llama.cpp before 2025
    return Complaint.FAILED

"""Which end of an answer is watched over, if it has one that can be told from its bytes."""

from llmproxy.protocol.response_head import Kind
from llmproxy.protocol.several_answers import SeveralAnswers
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.records import Ending, InferenceRequest


def tail_for(
    status: int, kind: Kind, ending: Ending, asked: InferenceRequest | None
) -> StreamTail | None:
    """Return what watches over the end of a stream; None when the answer is no stream."""
    if kind is Kind.EVENTS:
        if status != 200 or ending is Ending.NDJSON:
            return StreamTail(Ending.UNKNOWN)
        if ending is not Ending.CHAT or asked is None:
            return StreamTail(ending)
        counted = asked.include_usage is True
        if asked.answers > 1:
            return SeveralAnswers(asked.answers, counted=counted)
        return StreamTail(ending, counted=counted)
    if kind is Kind.LINES and status == 200 and ending is Ending.NDJSON:
        return StreamTail(ending)
    return None

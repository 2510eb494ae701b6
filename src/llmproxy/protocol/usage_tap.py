"""Tells what a request has used, from the bytes of its answer as they pass.

Rule 1: nothing is read until somebody asks: a short answer is kept as it is, one that comes in
        pieces leaves a trace.
Rule 2: what is kept is bounded, whatever the size of an answer.
Rule 3: what the model server has counted holds. What it has not said is estimated, and marked.

How good the estimates are: an event of a stream mostly is one token, but several with
speculative decoding, and none where the text is still held back. Four bytes a token are right
for English; a body is more than its prompt, so that a prompt is rather over- than undercounted.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from llmproxy import codec
from llmproxy.protocol.response_head import Kind, kind_of
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.protocol.usage_plain import plain_usage
from llmproxy.protocol.usage_report import Report
from llmproxy.protocol.usage_text import length_of_text
from llmproxy.protocol.usage_trace import HEAD, TAIL, Trace
from llmproxy.records import Ending, Endpoint, InferenceRequest, Usage
from llmproxy.types import Header

Charge = Literal["counted", "reported", "none"]
"""What is owed for an answer that was left: what was streamed, what was reported, nothing."""

GENERATING = frozenset({"chat", "completions", "responses", "messages"})
READING = frozenset({"embeddings", "rerank", "score"})  # they have a prompt and no answer
REPORTING = frozenset({"audio", "images", "native"})  # of these nothing is known unless it is said
METERED = GENERATING | READING | REPORTING

MOST_WHOLE = HEAD + TAIL  # bytes of an answer that is kept as it is
BYTES_PER_TOKEN = 4

# Inside a JSON string a quote is escaped and a newline too: none of these can come out of a
# model's mouth. Each stands once in every event that carries a piece of the answer.
_MARKS = {
    Ending.CHAT: b'"choices"',
    Ending.MESSAGES: b'"content_block_delta"',
    Ending.RESPONSES: b'.delta"',
    Ending.NDJSON: b"\n",
    Ending.UNKNOWN: b"\ndata:",
}
_KEYS = {
    Ending.NDJSON: (b'eval_count"',),
    Ending.UNKNOWN: (b'"usage"', b'"meta_info"', b'"generated_tokens"', b'"tokens_predicted"'),
}
_USAGE = (b'"usage"',)
_DONE = b"data: [DONE]"
# Their last event is the one with the count, and may be longer than what is kept.
_COUNTED_LAST = (Ending.RESPONSES, Ending.NDJSON)
_CHAT = Ending.CHAT  # looking a member up in its Enum takes three times as long
_TO_COME = ("queued", "in_progress")  # states of a response that is made in the background
_EDGE = 4  # events at either end that are read to see whether they carry anything


class UsageTap(msgspec.Struct, eq=False, weakref=True):  # made in a third of the time
    """One answer on its way to the client."""

    _endpoint: Endpoint
    _asked: InferenceRequest
    _kind: Kind | None = None  # None: there is no answer to pay for
    _headers: list[Header] | None = None  # of one that was not looked at yet
    _whole: bytes | None = None  # of an answer that came in one piece
    _trace: Trace | None = None  # of any other
    _taken: bytes | None = None
    _ended: bool = False
    _doubted: bool = False  # what is said of the answer is partly a guess of ours
    _cached: tuple[int, Report] | None = None
    _final: Usage | None = None

    def begin(self, status: int, headers: list[Header]) -> Callable[[bytes], None] | None:
        """Take notice of the head of the answer; return whom to tell of its pieces, if anybody."""
        if not 200 <= status < 300:
            return None
        self._kind = kind_of(headers)
        if self._trace is not None:
            return None  # somebody else does
        return self.note if self._kind is Kind.WHOLE else self._begun().note

    def complete(self, status: int, headers: list[Header], body: bytes) -> None:
        """Take notice of an answer that is there as a whole; most of them are."""
        if status != 200 or len(body) > MOST_WHOLE:
            self.begin(status, headers)
            self.end(body)
        else:
            self._ended = True
            self._headers = headers
            self._whole = body

    def watch(self) -> Trace:
        """Return where to tell of the pieces of an event stream, for whoever looks at them all.

        To be called before the head goes out: from then on nobody else is asked to tell.
        """
        self._kind = Kind.EVENTS
        return self._begun()

    def note(self, piece: bytes) -> None:
        """Take notice of a part of the body that goes to the client."""
        if self._kind is not None:
            self._begun().note(piece)

    def report(self, event: bytes) -> None:
        """Take notice of an event with a count that does not go to the client."""
        self._taken = event
        self._cached = None

    def doubt(self, doubted: bool) -> None:
        """Note whether what will be said of the tokens is partly a guess, and no count."""
        self._doubted = doubted

    def end(self, last: bytes = b"") -> None:
        """Take notice of the end of the answer, and of what came with it."""
        self._ended = True
        if self._trace is None and self._kind is Kind.WHOLE and len(last) <= MOST_WHOLE:
            self._whole = last
        elif last:
            self.note(last)

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, by its end or by its own last word.

        Most client libraries hang up at that word, before the end of the body.
        """
        trace, ending = self._trace, self._endpoint.ending
        if self._ended or trace is None or not trace.mark or ending is Ending.UNKNOWN:
            return self._ended
        report = self._report()
        if ending in _COUNTED_LAST and report.completion is not None:
            return True
        tail = StreamTail(ending)
        tail.note(trace.tail)
        return tail.finished()

    @property
    def tokens_so_far(self) -> int:
        """How much of the answer was streamed: events, which mostly are tokens."""
        if self._final is None:
            self._look()
        return self._trace.count if self._trace is not None else 0

    def usage(self, policy: Charge = "counted") -> Usage | None:
        """Return what was used, finally or so far; None when there is no answer to pay for yet.

        The policy is about answers that are not finished.
        """
        found = self._final
        if found is not None:
            return found
        whole = self._whole
        if whole is not None and self._endpoint.ending is _CHAT:
            found = plain_usage(whole)
        if found is None:
            self._look()
            if self._kind is not None:
                found = self._used(policy)
        if self._ended:  # it is asked for more than once, and nothing changes any more
            self._final = found
        return found

    def _used(self, policy: Charge) -> Usage | None:
        if policy != "counted" and not self.finished:
            if policy == "none":
                return Usage()
            report = self._report()
            written = report.completion or report.begun
            return report.usage(report.prompt or 0, written, estimated=self._doubted)
        report = self._report()
        prompt, completion = report.prompt, report.completion
        if completion is None and self._endpoint.name in READING:
            completion = 0
        if prompt is not None and completion is not None:
            return report.usage(prompt, completion, estimated=self._doubted)
        if self._only_accepted():
            return None
        text = max(self._estimate(), report.begun) if completion is None else completion
        if prompt is None:
            generates = self._endpoint.name not in REPORTING or text > 0
            size = self._asked.prompt_bytes if generates else 0
            prompt = -(-size // BYTES_PER_TOKEN)
        return report.usage(prompt, text, estimated=True)

    def _only_accepted(self) -> bool:
        """Tell whether the engine has only said that it will answer: its work is still to come.

        The answer is fetched by a request of its own, which nobody takes for one that costs.
        """
        if self._endpoint.ending is not Ending.RESPONSES or self._kind is not Kind.WHOLE:
            return False
        whole = self._whole if self._trace is None else self._trace.whole()
        said = _value(whole or b"")
        return isinstance(said, dict) and said.get("status") in _TO_COME

    def _look(self) -> None:
        """Look at an answer that came as a whole, as far as one does that comes in pieces."""
        headers, whole = self._headers, self._whole
        if headers is not None and whole is not None:
            self._headers = self._whole = None
            self.begin(200, headers)
            self.end(whole)

    def _begun(self) -> Trace:
        """Return the trace, begun now if it was not yet."""
        if self._trace is None:
            stream = self._kind in (Kind.EVENTS, Kind.LINES)
            self._trace = Trace(_MARKS[self._endpoint.ending] if stream else b"")
        return self._trace

    def _report(self) -> Report:
        trace = self._trace
        if trace is None:
            report = Report()
            report.take(_value(self._whole or b""))
            return report
        trace.fold()
        if self._cached is not None and self._cached[0] == trace.size:
            return self._cached[1]
        report = Report()
        if self._taken is not None:
            _read_lines(report, self._taken, _USAGE)
        whole = trace.whole()
        if self._kind in (Kind.EVENTS, Kind.LINES):
            keys = _KEYS.get(self._endpoint.ending, _USAGE)
            for data in (whole,) if whole is not None else (trace.tail, trace.head):
                if self._endpoint.ending is Ending.CHAT:
                    data = _up_to_done(data)
                _read_lines(report, data, keys)
        elif whole is not None:
            report.take(_value(whole))
        else:
            # Beside vectors or a long text it stands at the end, with llama.cpp in front.
            for data in (trace.tail, trace.head):
                if report.prompt is None or report.completion is None:
                    report.take_fragment(data)
        self._cached = trace.size, report
        return report

    def _estimate(self) -> int:
        """Return how many tokens the answer may have."""
        trace = self._trace
        if trace is not None and trace.mark:
            return max(0, trace.count - self._empty(trace))
        whole = self._whole if trace is None else trace.whole()
        if self._kind is Kind.WHOLE and whole is not None:
            value = _value(whole)
            if value is not None:
                return -(-length_of_text(value) // BYTES_PER_TOKEN)
            # Half of one cannot be read: what there is of it is measured like a longer one.
        size = trace.size if trace is not None else len(whole or b"")
        return size // BYTES_PER_TOKEN if self._endpoint.name in GENERATING else 0

    def _empty(self, trace: Trace) -> int:
        """Return how many of the first and the last events were counted and carry nothing."""
        if self._endpoint.ending not in (Ending.CHAT, Ending.NDJSON):
            return 0
        whole = trace.whole()
        if whole is not None:
            lines = whole.splitlines()
            edges = lines if len(lines) <= 4 * _EDGE else [*lines[:_EDGE], *lines[-2 * _EDGE :]]
        else:
            edges = [*trace.head.splitlines()[:_EDGE], *trace.tail.splitlines()[-2 * _EDGE :]]
        mark = trace.mark
        counted = [line for line in edges if mark == b"\n" or mark in line]
        values = [_value(line.removeprefix(b"data:")) for line in counted]
        return sum(isinstance(value, dict) and not length_of_text(value) for value in values)


def _up_to_done(data: bytes) -> bytes:
    """Leave out what stands behind `[DONE]`, where nobody reads on."""
    place = data.rfind(_DONE)
    return data[:place] if place > 0 and data[place - 1] in b"\r\n" else data


def _read_lines(report: Report, data: bytes, keys: tuple[bytes, ...]) -> None:
    """Read the lines that could tell something, from the last to the first."""
    end = len(data)
    while report.prompt is None or report.completion is None:
        found = max(data.rfind(key, 0, end) for key in keys)
        if found < 0:
            return
        start = max(data.rfind(b"\n", 0, found), data.rfind(b"\r", 0, found)) + 1
        ends = [place for char in b"\r\n" if (place := data.find(char, found)) >= 0]
        line = data[start : min(ends, default=len(data))].removeprefix(b"data:")
        value = _value(line)
        if value is None:
            report.take_fragment(line)  # its beginning was too far away to be kept
        else:
            report.take(value)
        end = start


def _value(data: bytes) -> object:
    try:
        return codec.loads(data)
    except codec.NotJson:
        return None

"""Tells what a request has used, from the bytes of its answer as they pass.

Rule 1: bytes are looked at, never changed, and parsed only when somebody asks: the head and the
        tail of an answer are kept, and in between events are counted without reading them.
Rule 2: what is kept is bounded, whatever the size of a chunk, an event or an answer.
Rule 3: what the model server has counted holds. What it has not said is estimated, and marked.

How good the estimates are: an event of a stream mostly is one token, but several with
speculative decoding, and none where the text is still held back. Four bytes a token are right
for English; a body is more than its prompt, so that a prompt is rather over- than undercounted.
"""

from collections.abc import Iterator
from typing import Literal

from llmproxy import codec
from llmproxy.protocol.response_head import Kind, kind_of
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.protocol.usage_report import Report
from llmproxy.records import Ending, Endpoint, InferenceRequest, Usage
from llmproxy.types import Header

Charge = Literal["counted", "reported", "none"]
"""What is owed for an answer that was left: what was streamed, what was reported, nothing."""

GENERATING = frozenset({"chat", "completions", "responses", "messages"})
READING = frozenset({"embeddings", "rerank", "score"})  # they have a prompt and no answer
REPORTING = frozenset({"audio", "images", "native"})  # of these nothing is known unless it is said
METERED = GENERATING | READING | REPORTING

HEAD = 4096  # bytes; Anthropic tells the prompt in the first event
TAIL = 8192  # bytes; the count stands in one of the last events, and at the end of an answer
MOST_CHUNKS = 48  # kept apart before they are looked at together
LARGE_CHUNK = 1024  # bytes; a larger one is not kept
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
_TEXTS = frozenset(  # where an answer has its text, and what stands around it
    {
        *("choices", "delta", "message", "output", "response", "function", "input"),
        *("content", "text", "generated_text", "reasoning_content", "reasoning", "thinking"),
        *("refusal", "tool_calls", "function_call", "name", "arguments"),
    }
)
_EDGE = 4  # events at either end that are read to see whether they carry anything


class UsageTap:
    """One answer on its way to the client."""

    __slots__ = (
        *("_asked", "_cached", "_count", "_ended", "_endpoint", "_final", "_head", "_kind"),
        *("_mark", "_parts", "_size", "_status", "_tail", "_taken"),
    )

    def __init__(self, endpoint: Endpoint, asked: InferenceRequest) -> None:
        self._endpoint = endpoint
        self._asked = asked
        self._status: int | None = None
        self._kind = Kind.WHOLE
        self._mark = b""  # what is counted
        self._parts: list[bytes] = []
        self._size = 0
        self._count = 0
        self._head = b""
        self._tail = b""
        self._taken: bytes | None = None
        self._ended = False
        self._cached: tuple[int, Report] | None = None
        self._final: Usage | None = None

    def begin(self, status: int, headers: list[Header]) -> None:
        """Take notice of the head of the answer."""
        self._status = status
        self._kind = kind_of(headers)
        if self._kind in (Kind.EVENTS, Kind.LINES):
            self._mark = _MARKS[self._endpoint.ending]
            if self._mark == b"\ndata:":
                self._tail = b"\n"  # so that the first event is like the others

    def note(self, chunk: bytes) -> None:
        """Take notice of a part of the body that goes to the client."""
        parts = self._parts
        parts.append(chunk)
        if len(parts) >= MOST_CHUNKS or len(chunk) > LARGE_CHUNK:
            self._fold()

    def report(self, event: bytes) -> None:
        """Take notice of an event with a count that does not go to the client."""
        self._taken = event
        self._cached = None

    def end(self) -> None:
        """Take notice of the end of the answer."""
        self._ended = True

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, by its end or by its own last word.

        Most client libraries hang up at that word, before the end of the body.
        """
        if self._ended or not self._mark or self._endpoint.ending is Ending.UNKNOWN:
            return self._ended
        report = self._report()
        if self._endpoint.ending in _COUNTED_LAST and report.completion is not None:
            return True
        tail = StreamTail(self._endpoint.ending)
        tail.note(self._tail)
        return tail.finished()

    @property
    def tokens_so_far(self) -> int:
        """How much of the answer was streamed: events, which mostly are tokens."""
        if self._mark:
            self._fold()
        return self._count

    def usage(self, policy: Charge = "counted") -> Usage | None:
        """Return what was used, finally or so far; None when there is no answer to pay for.

        The policy is about answers that are not finished.
        """
        if self._final is not None:
            return self._final
        found = self._used(policy)
        if self._ended:  # it is asked for more than once, and nothing changes any more
            self._final = found
        return found

    def _used(self, policy: Charge) -> Usage | None:
        if self._status is None or not 200 <= self._status < 300:
            return None
        if policy != "counted" and not self.finished:
            if policy == "none":
                return Usage()
            report = self._report()
            return report.usage(report.prompt or 0, report.completion or 0, estimated=False)
        report = self._report()
        prompt, completion = report.prompt, report.completion
        if completion is None and self._endpoint.name in READING:
            completion = 0
        if prompt is not None and completion is not None:
            return report.usage(prompt, completion, estimated=False)
        text = self._estimate() if completion is None else completion
        if prompt is None:
            generates = self._endpoint.name not in REPORTING or text > 0
            size = self._asked.prompt_bytes if generates else 0
            prompt = -(-size // BYTES_PER_TOKEN)
        return report.usage(prompt, text, estimated=True)

    def _fold(self) -> None:
        """Look at the chunks that were put aside, and keep of them what may matter."""
        if not self._parts:
            return
        data = b"".join(self._parts)
        self._parts.clear()
        self._size += len(data)
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        mark, tail = self._mark, self._tail
        if mark:
            reach = len(mark) - 1
            seam = tail[-reach:] + data[:reach] if reach else b""
            self._count += data.count(mark) + seam.count(mark)
        self._tail = data[-TAIL:] if len(data) >= TAIL else (tail + data)[-TAIL:]

    def _whole(self) -> bytes | None:
        """Return the whole of a short answer."""
        missing = self._size - len(self._head)
        if missing > TAIL:
            return None
        return self._head + self._tail[-missing:] if missing else self._head

    def _report(self) -> Report:
        parts = self._parts
        if self._kind is Kind.WHOLE and len(parts) == 1 and not self._size and self._taken is None:
            report = Report()  # the way it nearly always is: a whole answer that came in one piece
            report.take(_value(parts[0]))
            if report.prompt is not None and report.completion is not None:
                return report
        self._fold()
        if self._cached is not None and self._cached[0] == self._size:
            return self._cached[1]
        report = Report()
        if self._taken is not None:
            _read_lines(report, self._taken, _USAGE)
        whole = self._whole()
        if self._kind in (Kind.EVENTS, Kind.LINES):
            keys = _KEYS.get(self._endpoint.ending, _USAGE)
            for data in (whole,) if whole is not None else (self._tail, self._head):
                if self._endpoint.ending is Ending.CHAT:
                    data = _up_to_done(data)
                _read_lines(report, data, keys)
        elif whole is not None:
            report.take(_value(whole))
        else:
            # Beside vectors or a long text it stands at the end, with llama.cpp in front.
            for data in (self._tail, self._head):
                if report.prompt is None or report.completion is None:
                    report.take_fragment(data)
        self._cached = self._size, report
        return report

    def _estimate(self) -> int:
        """Return how many tokens the answer may have."""
        if self._mark:
            return max(0, self._count - self._empty())
        if self._kind is Kind.WHOLE and (whole := self._whole()) is not None:
            return -(-_length_of_text(_value(whole)) // BYTES_PER_TOKEN)
        return self._size // BYTES_PER_TOKEN if self._endpoint.name in GENERATING else 0

    def _empty(self) -> int:
        """Return how many of the first and the last events were counted and carry nothing."""
        if self._endpoint.ending not in (Ending.CHAT, Ending.NDJSON):
            return 0
        whole = self._whole()
        if whole is not None:
            lines = whole.splitlines()
            edges = lines if len(lines) <= 4 * _EDGE else [*lines[:_EDGE], *lines[-2 * _EDGE :]]
        else:
            edges = [*self._head.splitlines()[:_EDGE], *self._tail.splitlines()[-2 * _EDGE :]]
        values = [_value(line.removeprefix(b"data:")) for line in edges if self._counts(line)]
        return sum(isinstance(value, dict) and not _length_of_text(value) for value in values)

    def _counts(self, line: bytes) -> bool:
        return self._mark == b"\n" or self._mark in line


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


def _length_of_text(value: object) -> int:
    """Return the bytes of text in an answer or in an event of one."""
    return sum(len(text.encode()) for text in _texts(value))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name in _TEXTS:
                yield from _texts(each)

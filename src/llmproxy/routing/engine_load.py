"""What an engine says of its load: on its page of metrics, or in the head of an answer.

Pure: bytes go in, an `EngineLoad` comes out, or None where nothing is said. A page has hundreds
of lines of histograms and three or four that count, so it is searched for their names and never
parsed: about 70 us for the 100 KB that vLLM writes (a parser of the whole page takes 15 ms).

Rule 1: what several data parallel ranks or models say is added up, their KV caches are averaged:
        the engine itself chooses between its ranks. Of what is said of one of them more than
        once, the largest counts: SGLang's tensor parallel ranks tell the same requests again,
        and it tells each priority's part beside the whole.
Rule 2: a number that is none (NaN, infinite, negative) was not said.
Rule 3: a header only adds to what a page has said: it tells of no running requests, and of one
        rank only.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from llmproxy import codec

FRESH = 5.0  # seconds that it is believed
MOST_SERIES = 1024  # of one name; 8 are many
MOST_COUNT = 10**6  # requests; what says more of itself is broken, and must not upset a sum


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine says of itself."""

    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0  # 0 to 1
    seen_at: float = 0.0
    engine: str = ""  # which kind it has turned out to be
    ranks: int = 1  # whose numbers these are, added up
    others: int = 0  # of `running` and `waiting`, those that did not come from this process

    def is_fresh(self, now: float) -> bool:
        """Tell whether it is still worth something."""
        return now - self.seen_at <= FRESH


class Name(NamedTuple):
    """What a number is called on a page."""

    metric: bytes
    label: bytes = b""  # one that it must have, where several numbers share a name


class Dialect(NamedTuple):
    """What one kind of engine calls its numbers, newest name first."""

    engine: str
    running: Name
    waiting: Name
    kv_use: tuple[Name, ...] = ()


_REQUESTS = b"nv_trt_llm_request_metrics"
_DIALECTS = (
    Dialect(
        "vllm",
        Name(b"vllm:num_requests_running"),
        Name(b"vllm:num_requests_waiting"),
        (Name(b"vllm:kv_cache_usage_perc"), Name(b"vllm:gpu_cache_usage_perc")),
    ),
    Dialect(
        "sglang",
        Name(b"sglang:num_running_reqs"),
        Name(b"sglang:num_queue_reqs"),
        (Name(b"sglang:token_usage"),),
    ),
    Dialect("tgi", Name(b"tgi_batch_current_size"), Name(b"tgi_queue_size")),
    Dialect(
        "llamacpp",
        Name(b"llamacpp:requests_processing"),
        Name(b"llamacpp:requests_deferred"),
        (Name(b"llamacpp:kv_cache_usage_ratio"),),  # gone since May 2025
    ),
    Dialect(
        "trtllm",
        Name(b"trtllm_num_requests_running"),
        Name(b"trtllm_num_requests_waiting"),
        (Name(b"trtllm_kv_cache_utilization"),),
    ),
    Dialect(
        "triton",
        Name(_REQUESTS, b'request_type="scheduled"'),
        Name(_REQUESTS, b'request_type="waiting"'),
        (Name(b"nv_trt_llm_kv_cache_block_metrics", b'kv_cache_block_type="fraction"'),),
    ),
)

# Labels in braces, whose values may hold anything, and the number.
_SERIES = re.compile(
    rb'(?:\{((?:[^"}\n]++|"(?:[^"\\\n]++|\\.)*"){0,256})\})?[ \t]+([0-9.eE+-]{1,32})(?![^ \t\r\n])'
)
_RANK = re.compile(rb'(?:^|,)[ ]?(?:engine|dp_rank|model_name)="((?:[^"\\]|\\.)*)"')

# What a page of TensorRT-LLM's JSON is recognised by, and its numbers.
_ACTIVE = b'"numActiveRequests"'
_NUMBER = re.compile(rb"\s*:\s*([0-9]{1,18})")


def read_page(page: bytes, now: float) -> EngineLoad | None:
    """Return what a page of metrics says, of whichever engine it is."""
    if page.startswith((b"[", b"{")):
        return _iterations(page, now)
    for dialect in _DIALECTS:
        running = _values(page, dialect.running)
        waiting = _values(page, dialect.waiting)
        if not running and not waiting:
            continue
        shares: dict[bytes, float] = {}
        for name in dialect.kv_use:
            if shares := _values(page, name):
                break
        return EngineLoad(
            _count(sum(running.values())),
            _count(sum(waiting.values())),
            _share(sum(shares.values()) / len(shares)) if shares else 0.0,
            now,
            dialect.engine,
            max(len(running), len(waiting)),
        )
    return None


def read_header(value: bytes, now: float, before: EngineLoad | None = None) -> EngineLoad | None:
    """Return what an `endpoint-load-metrics` header says, beside what was known before.

    In the forms that are asked for by `endpoint-load-metrics-format: json` and `: text`.
    """
    known = before if before is not None and before.is_fresh(now) else EngineLoad()
    if known.ranks > 1:
        return None
    said = dict(_named(value))
    waiting = said.get("num_requests_waiting")
    kv_use = said.get("kv_cache_usage_perc", said.get("kv_cache_utilization"))
    if waiting is None and kv_use is None:
        return None
    return replace(
        known,
        waiting=known.waiting if waiting is None else _count(waiting),
        kv_use=known.kv_use if kv_use is None else _share(kv_use),
        seen_at=now,
    )


def _values(page: bytes, name: Name) -> dict[bytes, float]:
    """Return a number by the rank and model that it is said of."""
    found: dict[bytes, float] = {}
    for at in islice(_places(page, name.metric), MOST_SERIES):
        series = _SERIES.match(page, at)
        if series is None:
            continue  # a longer name that begins like this one
        labels = series[1] or b""
        number = _number(series[2])
        if number is not None and name.label in labels:
            rank = b"\n".join(_RANK.findall(labels))
            found[rank] = max(number, found.get(rank, 0.0))
    return found


def _places(page: bytes, metric: bytes) -> Iterator[int]:
    """Yield what comes after a name, wherever a line begins with it."""
    if page.startswith(metric):
        yield len(metric)
    line = b"\n" + metric
    at = page.find(line)
    while at >= 0:
        at += len(line)
        yield at
        at = page.find(line, at)


def _iterations(page: bytes, now: float) -> EngineLoad | None:
    """Return what the last of TensorRT-LLM's iterations says; a page may hold a thousand."""
    at = page.rfind(_ACTIVE)
    running = _after(page, at, _ACTIVE)
    if running is None:
        return None  # something else, or an engine that had nothing to do since it was last asked
    queued = b'"numQueuedRequests"'
    blocks = page.rfind(b'"kvCacheStats"')
    used, most = b'"usedNumBlocks"', b'"maxNumBlocks"'
    in_use = _after(page, page.find(used, blocks), used)
    in_all = _after(page, page.find(most, blocks), most)
    return EngineLoad(
        _count(running),
        _count(_after(page, page.rfind(queued), queued) or 0),
        _share(in_use / in_all) if blocks >= 0 and in_use is not None and in_all else 0.0,
        now,
        "trtllm",
    )


def _after(page: bytes, at: int, name: bytes) -> int | None:
    match = _NUMBER.match(page, at + len(name)) if at >= 0 else None
    return int(match[1]) if match is not None else None


def _named(value: bytes) -> Iterator[tuple[str, float]]:
    """Yield the named metrics of a load report in either form."""
    form, _, rest = value.strip().partition(b" ")
    if form.upper() == b"JSON":
        for name, number in _named_in_json(rest):
            if isinstance(number, int | float) and 0 <= number < math.inf:
                yield name, float(number)
    elif form.upper() == b"TEXT":
        for part in rest.split(b","):
            key, _, digits = part.strip().partition(b"=")
            text = _number(digits)
            if text is not None:
                yield key.removeprefix(b"named_metrics.").decode("latin-1"), text


def _named_in_json(text: bytes) -> list[tuple[str, Any]]:
    try:
        report = codec.loads(text)
    except codec.NotJson:
        return []
    named = report.get("named_metrics") if isinstance(report, dict) else None
    return list(named.items()) if isinstance(named, dict) else []


def _number(digits: bytes) -> float | None:
    try:
        number = float(digits)
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _count(number: float) -> int:
    return int(min(number, MOST_COUNT))


def _share(number: float) -> float:
    return min(number, 1.0)

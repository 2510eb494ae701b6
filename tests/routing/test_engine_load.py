"""What an engine says of its load, in its own words."""

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.routing.engine_load import FRESH, EngineLoad, read_header, read_page

NOW = 100.0
MODEL = 'model_name="meta-llama/Llama-3.1-8B-Instruct"'

VLLM = f"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",{MODEL}}} 12.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",{MODEL}}} 3.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{{engine="0",{MODEL},reason="capacity"}} 40.0
vllm:num_requests_waiting_by_reason{{engine="0",{MODEL},reason="deferred"}} 50.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",{MODEL}}} 0.42
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.001",{MODEL}}} 0.0
"""
OLD_VLLM = f"""\
vllm:num_requests_running{{{MODEL}}} 12.0
vllm:num_requests_swapped{{{MODEL}}} 7.0
vllm:num_requests_waiting{{{MODEL}}} 3.0
vllm:gpu_cache_usage_perc{{{MODEL}}} 0.42
vllm:cpu_cache_usage_perc{{{MODEL}}} 0.99
"""
SGLANG = f"""\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{engine_type="unified",{MODEL},tp_rank="0"}} 12.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{{engine_type="unified",{MODEL},tp_rank="0"}} 3.0
# TYPE sglang:token_usage gauge
sglang:token_usage{{engine_type="unified",{MODEL},tp_rank="0"}} 0.42
sglang:full_token_usage{{engine_type="unified",{MODEL},tp_rank="0"}} 0.99
"""
TGI = """\
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 12

# TYPE tgi_queue_size gauge
tgi_queue_size 3

# TYPE tgi_batch_current_max_tokens gauge
tgi_batch_current_max_tokens 4096
"""
OLD_LLAMACPP = """\
# HELP llamacpp:kv_cache_usage_ratio KV-cache usage. 1 means 100 percent usage.
# TYPE llamacpp:kv_cache_usage_ratio gauge
llamacpp:kv_cache_usage_ratio 0.42
llamacpp:requests_processing 12
llamacpp:requests_deferred 3
"""
LLAMACPP = "llamacpp:requests_processing 12\nllamacpp:requests_deferred 3\n"
TRTLLM = f"""\
trtllm_num_requests_running{{engine_type="undefined",{MODEL}}} 12.0
trtllm_num_requests_waiting{{engine_type="undefined",{MODEL}}} 3.0
trtllm_num_requests_completed_total{{engine_type="undefined",{MODEL}}} 900.0
trtllm_kv_cache_utilization{{engine_type="undefined",{MODEL}}} 0.42
trtllm_kv_cache_host_utilization{{engine_type="undefined",{MODEL}}} 0.99
"""
TRITON = """\
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 12
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 900
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"}\
 0.42
"""


def read(page: str) -> EngineLoad | None:
    return read_page(page.encode(), NOW)


@pytest.mark.parametrize(
    ("page", "engine", "kv_use"),
    [
        pytest.param(VLLM, "vllm", 0.42, id="vllm"),
        pytest.param(OLD_VLLM, "vllm", 0.42, id="vllm_before_0.10"),
        pytest.param(SGLANG, "sglang", 0.42, id="sglang"),
        pytest.param(TGI, "tgi", 0.0, id="tgi"),
        pytest.param(LLAMACPP, "llamacpp", 0.0, id="llamacpp"),
        pytest.param(OLD_LLAMACPP, "llamacpp", 0.42, id="llamacpp_before_may_2025"),
        pytest.param(TRTLLM, "trtllm", 0.42, id="trtllm"),
        pytest.param(TRITON, "triton", 0.42, id="triton"),
    ],
)
def test_every_engine_is_understood(page: str, engine: str, kv_use: float) -> None:
    """It is known by its own names, and longer names that begin like them are others."""
    assert read(page) == EngineLoad(12, 3, kv_use, NOW, engine)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param(
            'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 5\n'
            'vllm:num_requests_waiting{engine="0"} 0\nvllm:num_requests_waiting{engine="1"} 4\n'
            'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.6\n',
            EngineLoad(7, 4, 0.4, NOW, "vllm", 2),
            id="data_parallel",
        ),
        pytest.param(
            'sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 2\n'
            'sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 2\n'
            'sglang:num_running_reqs{dp_rank="1",tp_rank="2"} 5\n'
            'sglang:num_running_reqs{dp_rank="1",tp_rank="3"} 5\n',
            EngineLoad(7, 0, 0.0, NOW, "sglang", 2),
            id="tensor_parallel_tells_the_same_twice",
        ),
        pytest.param(
            'sglang:num_queue_reqs{priority=""} 5\nsglang:num_queue_reqs{priority="0"} 3\n'
            'sglang:num_queue_reqs{priority="9"} 2\n',
            EngineLoad(0, 5, 0.0, NOW, "sglang"),
            id="priorities_are_parts_of_the_whole",
        ),
        pytest.param(
            'vllm:num_requests_running{model_name="a"} 2\n'
            'vllm:num_requests_running{model_name="b"} 5\n',
            EngineLoad(7, 0, 0.0, NOW, "vllm", 2),
            id="two_models",
        ),
        pytest.param(
            'vllm:num_requests_running{engine="0",model_name="a} 9 \\",engine=\\"7"} 2\n'
            'vllm:num_requests_running{engine="0",model_name="a} 9 \\",engine=\\"7"} 2\n',
            EngineLoad(2, 0, 0.0, NOW, "vllm"),
            id="a_name_may_hold_anything",
        ),
        pytest.param(
            "vllm:num_requests_running NaN\nvllm:num_requests_waiting 1e+01 1700000000\n",
            EngineLoad(0, 10, 0.0, NOW, "vllm"),
            id="what_is_no_number_was_not_said",
        ),
        pytest.param(
            "vllm:num_requests_running -1\nvllm:num_requests_waiting 1e300\n"
            "vllm:kv_cache_usage_perc 42\n",
            EngineLoad(0, 10**6, 1.0, NOW, "vllm"),
            id="what_cannot_be_is_bounded",
        ),
    ],
)
def test_what_several_say_is_put_together(page: str, expected: EngineLoad) -> None:
    """Each request counts once."""
    assert read(page) == expected


@pytest.mark.parametrize(
    "page",
    [
        "",
        "# HELP vllm:num_requests_running Number of requests.\n",
        "go_goroutines 12\nhttp_requests_total 9\n",
        "<html><body>vllm:num_requests_running 9</body></html>",
        "xvllm:num_requests_running 9\n",
        "vllm:num_requests_running\n",
        'vllm:num_requests_running{engine="0} 9\n',
        "vllm:num_requests_running 9x\n",
        "[]",
        "{}",
        '[{"id": "a"}]',
        '{"numActiveRequests": "many"}',
    ],
)
def test_a_page_that_says_nothing_of_it_is_nobodys(page: str) -> None:
    """No load is invented: not the same as an engine that has nothing to do."""
    assert read(page) is None


def iteration(active: int, queued: int, used: int, most: int = 100) -> dict[str, object]:
    """Return what TensorRT-LLM tells of one step."""
    return {
        "crossKvCacheStats": {"maxNumBlocks": 7, "usedNumBlocks": 7},
        "iter": 1,
        "kvCacheStats": {"freeNumBlocks": 1, "maxNumBlocks": most, "usedNumBlocks": used},
        "numActiveRequests": active,
        "numQueuedRequests": queued,
    }


@pytest.mark.parametrize("option", [0, orjson.OPT_INDENT_2])
def test_the_last_iteration_of_tensorrt_llm_counts(option: int) -> None:
    """Its page is a list of all steps since it was asked last."""
    page = orjson.dumps([iteration(99, 99, 99), iteration(12, 3, 42)], option=option)

    assert read_page(page, NOW) == EngineLoad(12, 3, 0.42, NOW, "trtllm")


def test_an_iteration_need_not_tell_all() -> None:
    """Image models have no KV cache, an engine without blocks no share of them."""
    bare = orjson.dumps([{"numActiveRequests": 2}])
    empty = orjson.dumps([iteration(2, 0, 0, most=0)])

    assert read_page(bare, NOW) == read_page(empty, NOW) == EngineLoad(2, 0, 0.0, NOW, "trtllm")


series = st.tuples(st.integers(0, 3), st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1))


@given(st.dictionaries(st.integers(0, 9), series, min_size=1))
def test_whatever_the_ranks_say_adds_up(ranks: dict[int, tuple[int, int, int, float]]) -> None:
    """In whatever order, with other lines between them."""
    lines = []
    for rank, (noise, running, waiting, kv_use) in ranks.items():
        labels = f'{{engine="{rank}",{MODEL}}}'
        lines += [f"vllm:num_requests_running_total{labels} 77"] * noise
        lines.append(f"vllm:num_requests_running{labels} {float(running)}")
        lines.append(f"vllm:num_requests_waiting{labels} {waiting:e}")
        lines.append(f"vllm:kv_cache_usage_perc{labels} {kv_use!r}")

    load = read("\n".join(lines))

    assert load is not None
    assert load.running == sum(each[1] for each in ranks.values())
    assert load.waiting == sum(each[2] for each in ranks.values())
    assert load.kv_use == pytest.approx(sum(each[3] for each in ranks.values()) / len(ranks))
    assert load.ranks == len(ranks)


words = (
    rb'vllm:num_requests_running { } " \ 1 e9 - nan engine= , [ "numActiveRequests" : TEXT JSON ='
    rb' {"named_metrics": "num_requests_waiting" num_requests_waiting'
).split()


@given(st.lists(st.sampled_from([*words, b" ", b"\n", b"\xff"]), max_size=30).map(b"".join))
def test_no_bytes_upset_it(said: bytes) -> None:
    """An engine may be broken; that is no reason to break with it."""
    for load in (read_page(said, NOW), read_header(said, NOW)):
        assert load is None or (load.running >= 0 <= load.waiting and 0 <= load.kv_use <= 1)


@pytest.mark.parametrize(
    ("value", "waiting", "kv_use"),
    [
        (
            b'JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 2.0}}',
            2,
            0.4,
        ),
        (
            b"TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2.0",
            2,
            0.4,
        ),
        (b"TEXT cpu_utilization=0.3, named_metrics.kv_cache_utilization=0.4", 7, 0.4),
        (b'json {"cpu_utilization": 0.3, "named_metrics": {"num_requests_waiting": 2}}', 2, 0.9),
    ],
)
def test_a_header_adds_to_what_the_page_has_said(value: bytes, waiting: int, kv_use: float) -> None:
    """It is newer, and says less: who else is there only the page knows."""
    before = EngineLoad(12, 7, 0.9, NOW - 1, "vllm", others=5)

    assert read_header(value, NOW, before) == replace(
        before, waiting=waiting, kv_use=kv_use, seen_at=NOW
    )


def test_a_header_is_enough_where_there_is_no_page() -> None:
    """And what a page said long ago is not kept alive by it."""
    value = b"TEXT named_metrics.num_requests_waiting=2.0"
    old = EngineLoad(12, 7, 0.9, NOW - FRESH - 1, "vllm", others=5)

    assert read_header(value, NOW) == EngineLoad(waiting=2, seen_at=NOW)
    assert read_header(value, NOW, old) == EngineLoad(waiting=2, seen_at=NOW)


def test_a_header_of_one_rank_says_nothing_of_all() -> None:
    """vLLM puts the first one's figures into it."""
    value = b"TEXT named_metrics.num_requests_waiting=2.0"

    assert read_header(value, NOW, EngineLoad(12, 7, seen_at=NOW, ranks=2)) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"TEXT",
        b"TEXT a=b",
        b"TEXT num_requests_waiting=-1",
        b"JSON",
        b"JSON []",
        b'JSON {"named_metrics": 1}',
        b'JSON {"named_metrics": {"num_requests_waiting": "2"}}',
        b"BIN CZqZ",
    ],
)
def test_a_header_that_says_nothing_of_it_changes_nothing(value: bytes) -> None:
    """Neither is it an engine that has nothing to do."""
    assert read_header(value, NOW) is None


def test_a_load_is_forgotten() -> None:
    """After some seconds an engine may be busy or idle, whatever it said."""
    load = EngineLoad(seen_at=NOW)

    assert load.is_fresh(NOW + FRESH)
    assert not load.is_fresh(NOW + FRESH + 0.1)

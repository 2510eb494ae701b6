"""Reading the settings: once for each start and each `check`."""

from benchmarks.micro.registry import Preparation, benchmark, calls
from llmproxy.settings import Settings

FEW = {"LLMPROXY_UPSTREAMS": "http://gpu1:8000"}
MANY = {
    "LLMPROXY_UPSTREAMS": ",".join(
        f"gpu{number}=vllm://gpu{number}.example.com:8000/v1;models=llama|qwen;weight=2"
        for number in range(16)
    ),
    "LLMPROXY_HOST": "0.0.0.0",
    "LLMPROXY_PORT": "8080",
    "LLMPROXY_AUTH": "off",
    "LLMPROXY_TIMEOUT_FIRST_BYTE": "240",
    "LLMPROXY_MAX_BODY": "64MiB",
    "LLMPROXY_CORS_ORIGINS": "https://chat.example.com",
    "LLMPROXY_TRUSTED_PROXIES": "10.0.0.0/8,192.168.0.0/16",
    "LLMPROXY_LOG_LEVEL": "warning",
    **{f"OTHER_{number}": "of an ordinary environment" for number in range(40)},
}


@benchmark("settings.load, one upstream", "load")
async def few() -> Preparation:
    yield calls(lambda settings: len(settings.upstreams) == 1, Settings.load, FEW)


@benchmark("settings.load, 16 upstreams", "load")
async def many() -> Preparation:
    yield calls(lambda settings: len(settings.upstreams) == 16, Settings.load, MANY)

"""The contenders: how each one is set up and started in front of the model server.

Every subject gets one upstream, a free port and a folder of its own, and is told to do nothing
but forward: no retries, no access log, no buffering. The exception is llmproxy, which keeps its
defaults, access log included; and LiteLLM does not start without a key, so it checks one.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks.load.environments import ROOT, first_line, installed, program
from benchmarks.load.wire import KEY, MODEL

SGLANG_ROUTER = "sglang-router==0.3.2"
VLLM_ROUTER = "vllm-router==0.1.17"
LITELLM = "litellm[proxy]==1.106.0"


@dataclass(frozen=True, slots=True)
class Place:
    """What a subject is given to start with."""

    port: int
    spare_port: int  # for what a peer insists on opening beside it
    upstream_port: int
    folder: Path

    @property
    def upstream(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line, and what its environment has beyond ours."""

    argv: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """One contender. `prepare` makes it startable and returns its version, or says why not."""

    name: str
    prepare: Callable[[], str]
    launch: Callable[[Place], Launch] | None  # None: nobody stands in between


def _nginx(place: Place) -> Launch:
    config = place.write(
        "nginx.conf",
        f"""
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {place.folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  upstream engine {{ server {place.upstream.removeprefix("http://")}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{place.port} backlog=4096;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
""",
    )
    return Launch([program("nginx", "nginx-light"), "-e", "stderr", "-c", config])


def _haproxy(place: Place) -> Launch:
    config = place.write(
        "haproxy.cfg",
        f"""
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend front
  bind 127.0.0.1:{place.port} backlog 4096
  default_backend engine
backend engine
  server engine {place.upstream.removeprefix("http://")} pool-max-conn -1
""",
    )
    return Launch([program("haproxy", "haproxy"), "-db", "-f", config])


def _router(name: str, requirement: str) -> Callable[[Place], Launch]:
    """sglang-router and vllm-router are of one family and start alike."""
    module = name.replace("-", "_") + ".launch_router"

    def launch(place: Place) -> Launch:
        return Launch(
            [
                *(str(installed(name, requirement)), "-m", module),
                *("--host", "127.0.0.1", "--port", str(place.port)),
                *("--worker-urls", place.upstream, "--policy", "round_robin"),
                *("--disable-retries", "--disable-circuit-breaker", "--log-level", "error"),
                *("--prometheus-port", str(place.spare_port)),
            ]
        )

    return launch


def _litellm(place: Place) -> Launch:
    python = installed("litellm", LITELLM)
    config = place.write(
        "litellm.yaml",
        f"""
model_list:
  - model_name: {MODEL}
    litellm_params: {{model: openai/{MODEL}, api_base: "{place.upstream}/v1", api_key: none}}
general_settings: {{master_key: "{KEY}"}}
litellm_settings: {{telemetry: false, num_retries: 0, request_timeout: 600}}
""",
    )
    argv = [str(python.parent / "litellm"), "--config", config, "--host", "127.0.0.1"]
    return Launch(
        [*argv, "--port", str(place.port), "--num_workers", "1"],
        {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )


def _naive(place: Place) -> Launch:
    module = "benchmarks.load.naive_proxy"
    argv = [sys.executable, "-m", module, "--upstream", place.upstream, "--port", str(place.port)]
    return Launch(argv)


def _own_version() -> str:
    from_here = f"PYTHONPATH={ROOT / 'src'}"
    version = first_line("env", from_here, sys.executable, "-m", "llmproxy", "--version")
    commit = first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    return f"{version}, commit {commit}"


def _described(package: str) -> str:
    return f"{package} {version(package)}"


def _version_in(name: str, requirement: str) -> str:
    installed(name, requirement)
    return requirement.replace("==", " ")


def llmproxy(name: str, environ: Mapping[str, str]) -> Subject:
    """llmproxy of this working copy, with some settings."""

    def launch(place: Place) -> Launch:
        return Launch(
            [sys.executable, "-m", "llmproxy", "serve"],
            {
                "PYTHONPATH": str(ROOT / "src"),
                "LLMPROXY_UPSTREAMS": place.upstream,
                "LLMPROXY_PORT": str(place.port),
                **environ,
            },
        )

    return Subject(name, _own_version, launch)


# Each layer is given real work to do on every request, and nothing that would refuse one.
LAYERS: dict[str, dict[str, str]] = {
    "auth": {"LLMPROXY_KEYS": f"bench:{KEY}"},
    "rate_limit": {
        "LLMPROXY_LIMITS": "100000000 req/min, 1000000000000 tok/min, 100000 concurrent"
    },
    "metering": {"LLMPROXY_PRICES": f"{MODEL}=0.5:1.5"},
    "semantic_cache": {"LLMPROXY_CACHE": "exact"},  # every question is new: the cost of a miss
    "routing": {},
}


def layered(layers: Sequence[str]) -> dict[str, str]:
    """The settings of a chain with these layers."""
    environ = {"LLMPROXY_MIDDLEWARE": ",".join(layers)}
    for layer in layers:
        environ |= LAYERS[layer]
    return environ


DIRECT = Subject("direct", lambda: "no proxy", None)
BARE = llmproxy("llmproxy", layered(()))
SINGLE_LAYERS = {layer: llmproxy(f"llmproxy+{layer}", layered((layer,))) for layer in LAYERS}
PEERS = {
    subject.name: subject
    for subject in (
        Subject("nginx", lambda: first_line(program("nginx", "nginx-light"), "-v"), _nginx),
        Subject(
            "sglang-router",
            lambda: _version_in("sglang-router", SGLANG_ROUTER),
            _router("sglang-router", SGLANG_ROUTER),
        ),
        Subject("naive", lambda: f"{_described('starlette')}, {_described('httpx')}", _naive),
        Subject("haproxy", lambda: first_line(program("haproxy", "haproxy"), "-v"), _haproxy),
        Subject(
            "vllm-router",
            lambda: _version_in("vllm-router", VLLM_ROUTER),
            _router("vllm-router", VLLM_ROUTER),
        ),
        Subject("litellm", lambda: _version_in("litellm", LITELLM), _litellm),
    )
}


def inherited_environ() -> dict[str, str]:
    """Our environment without settings of llmproxy, which would decide what is measured."""
    return {k: v for k, v in os.environ.items() if not k.startswith("LLMPROXY_")}

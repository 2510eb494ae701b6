"""What is known about each kind of model server before it is asked anything.

Paths are what the servers' own documentation and route tables name. Two rules for them:

Rule 1: `native` holds what asks a model or only reads. It is open to callers.
Rule 2: `management` holds prefixes of what changes the server, stops other people's work or
        tells of its insides (SGLang's /server_info shows its API key). It needs the admin key.
        A path below /v1/ passes unless it stands here, so there this list has to be complete;
        every other path is closed unless it stands in one of the two.
"""

from dataclasses import dataclass
from types import MappingProxyType

LOCAL = "127.0.0.1"  # where an engine is looked for when its URL names no host


@dataclass(frozen=True, slots=True)
class Preset:
    """One kind of server."""

    port: int
    tls: bool = False
    host: str = LOCAL  # empty: has to be named
    domain: str = ""  # what a host without a dot is put into: {} is the host
    api: str = "/v1"  # what stands in the place of /v1
    health: str = ""  # empty: the list of models has to do
    lists_models: bool = True
    any_model: bool = False  # answers to any name, or to more of them than it lists
    metrics: str = ""  # where it says how busy it is
    key_header: str = "authorization"  # anything else carries the key without `Bearer`
    headers: tuple[tuple[str, str], ...] = ()  # sent with every request
    native: frozenset[str] = frozenset()
    management: tuple[str, ...] = ()

    @property
    def hosted(self) -> bool:
        """Whether this is somebody's service, which nobody uses without a key."""
        return self.host != LOCAL


_VLLM = Preset(
    port=8000,
    health="/health",
    metrics="/metrics",
    native=frozenset(
        {"/tokenize", "/detokenize", "/pooling", "/classify", "/score", "/rerank", "/v2/rerank"}
        | {"/version"}
    ),
    management=(
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        # The rest exists with VLLM_SERVER_DEV_MODE or a flag.
        "/abort_requests",
        "/collective_rpc",
        "/init_weight_transfer_engine",
        "/is_paused",
        "/is_sleeping",
        "/pause",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/server_info",
        "/sleep",
        "/start_profile",
        "/stop_profile",
        "/update_weights",
        "/wake_up",
    ),
)

# Its /health generates a token when nothing else is running; the list of models costs nothing.
_SGLANG = Preset(
    port=30000,
    metrics="/metrics",  # with --enable-metrics
    native=frozenset(
        {"/generate", "/encode", "/classify", "/tokenize", "/detokenize"}
        | {"/get_model_info", "/model_info"}
    ),
    management=(
        "/abort_request",
        "/clear_hicache_storage_backend",
        "/close_session",
        "/configure_logging",
        "/continue_generation",
        "/destroy_weights_update_group",
        "/dump_expert_distribution_record",
        "/flush_cache",
        "/freeze_gc",
        "/get_load",
        "/get_server_info",
        "/get_weights_by_name",
        "/hicache",
        "/init_weights_send_group_for_remote_instance",
        "/init_weights_update_group",
        "/load_lora_adapter",
        "/open_session",
        "/pause_generation",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/send_weights_to_remote_instance",
        "/server_info",
        "/set_internal_state",
        "/slow_down",
        "/start_expert_distribution_record",
        "/start_profile",
        "/stop_expert_distribution_record",
        "/stop_profile",
        "/unload_lora_adapter",
        "/update_weight_version",
        "/update_weights",
        "/update_weights_from_disk",
        "/update_weights_from_distributed",
        "/update_weights_from_ipc",
        "/update_weights_from_tensor",
        "/weights_checker",
    ),
)

# In maintenance mode, and without a path that changes it.
_TGI = Preset(
    port=3000,
    any_model=True,
    health="/health",
    metrics="/metrics",
    native=frozenset({"/generate", "/generate_stream", "/tokenize", "/chat_tokenize", "/info"}),
)

_LLAMACPP = Preset(
    port=8080,
    any_model=True,
    health="/health",
    metrics="/metrics",  # with --metrics
    native=frozenset(
        {"/completion", "/completions", "/chat/completions", "/infill", "/embedding"}
        | {"/embeddings", "/rerank", "/reranking", "/tokenize", "/detokenize"}
        | {"/apply-template", "/models"}
    ),
    management=("/lora-adapters", "/models/load", "/models/unload", "/props", "/slots", "/tools"),
)

_OLLAMA = Preset(
    port=11434,
    health="/api/version",
    native=frozenset(
        {"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"}
        | {"/api/tags", "/api/ps", "/api/show", "/api/version"}
    ),
    management=(
        "/api/blobs",
        "/api/copy",
        "/api/create",
        "/api/delete",
        "/api/pull",
        "/api/push",
    ),
)

_LMSTUDIO = Preset(
    port=1234,
    any_model=True,  # whatever is loaded
    native=frozenset(
        {"/api/v0/models", "/api/v0/chat/completions", "/api/v0/completions"}
        | {"/api/v0/embeddings", "/api/v1/models", "/api/v1/chat"}
    ),
    management=("/api/v1/models/download", "/api/v1/models/load", "/api/v1/models/unload"),
)

_LOCALAI = Preset(
    port=8080,
    health="/readyz",
    native=frozenset({"/tts", "/sound-generation", "/video"}),
    management=(
        "/backend",
        "/backends",
        "/models/apply",
        "/models/available",
        "/models/delete",
        "/models/edit",
        "/models/import",
        "/models/import-uri",
        "/models/jobs",
        "/models/reload",
        "/stores",
        "/system",
        "/v1/backend",
    ),
)

_TEXTGEN = Preset(
    port=5000,
    any_model=True,
    native=frozenset(
        {"/v1/internal/encode", "/v1/internal/decode", "/v1/internal/token-count"}
        | {"/v1/internal/logits", "/v1/internal/chat-prompt", "/v1/internal/model/info"}
    ),
    management=("/v1/internal",),
)

_OPENAI = Preset(
    port=443,
    tls=True,
    host="api.openai.com",
    management=("/v1/organization",),
)

_AZURE = Preset(
    port=443,
    any_model=True,  # lists models, and is asked for deployments
    tls=True,
    host="",
    domain="{}.openai.azure.com",
    api="/openai/v1",
    key_header="api-key",
)

_ANTHROPIC = Preset(
    port=443,
    any_model=True,  # aliases and later pages
    tls=True,
    host="api.anthropic.com",
    key_header="x-api-key",
    headers=(("anthropic-version", "2023-06-01"),),
    management=("/v1/organizations",),
)

_GEMINI = Preset(
    port=443,
    any_model=True,  # aliases
    tls=True,
    host="generativelanguage.googleapis.com",
    api="/v1beta/openai",
)

# The compatible API has no list of models; the native one has, and takes the same key.
_COHERE = Preset(
    port=443,
    any_model=True,
    tls=True,
    host="api.cohere.ai",
    api="/compatibility/v1",
    health="/v1/models",
    lists_models=False,
)

# The host is a region. Chat completions and responses are all there is under this path.
_BEDROCK = Preset(
    port=443,
    any_model=True,
    tls=True,
    host="",
    domain="bedrock-runtime.{}.amazonaws.com",
    api="/openai/v1",
    lists_models=False,
)

PRESETS = MappingProxyType(
    {
        "vllm": _VLLM,
        "sglang": _SGLANG,
        "tgi": _TGI,
        "llamacpp": _LLAMACPP,
        "ollama": _OLLAMA,
        "lmstudio": _LMSTUDIO,
        "localai": _LOCALAI,
        "textgen": _TEXTGEN,
        "openai": _OPENAI,
        "azure": _AZURE,
        "anthropic": _ANTHROPIC,
        "gemini": _GEMINI,
        "cohere": _COHERE,
        "bedrock": _BEDROCK,
    }
)

# Behind a plain URL any of them may stand. No native path is opened for it: nobody said
# whose they are. But what manages some engine below /v1/ would pass, so all of it is guarded.
# /health is what vLLM, SGLang, TGI and llama.cpp answer; a probe falls back on the models.
GENERIC = Preset(
    port=80,
    any_model=True,
    health="/health",
    metrics="/metrics",
    management=tuple(
        sorted(
            prefix
            for preset in PRESETS.values()
            for prefix in preset.management
            if prefix.startswith("/v1/")
        )
    ),
)

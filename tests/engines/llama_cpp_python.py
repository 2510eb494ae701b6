"""llama-cpp-python's server, with a tiny llama model of our own making."""

import json
import subprocess
from pathlib import Path

from tests.engines.engine import Engine
from tests.engines.environments import install, python_of

NAME = "llama-cpp"
MODEL_WRITER = Path(__file__).with_name("tiny_llama.py")

REQUIREMENTS = ("llama-cpp-python[server]==0.3.36", "gguf==0.19.0")
BUILD_TOOLS = {
    "cmake": ["cmake"],
    "a C compiler (gcc)": ["cc", "gcc", "clang"],
    "a C++ compiler (g++)": ["c++", "g++", "clang++"],
}

CONTEXT_LENGTH = 8192  # tokens
# The server decodes its whole answer again for each token, so that time grows with the square
# of the length: 8,000 tokens take it a minute, the first hundred 20 ms.
ENDLESS = 8000


def set_up() -> None:
    """Build the server in an environment of its own: five minutes on two cores."""
    install(NAME, REQUIREMENTS, tools=BUILD_TOOLS)


def command(folder: Path, port: int) -> list[str]:
    """Start it so that it finishes one answer before it begins the next."""
    return _command(folder, port, interrupt_requests=False)


def interrupting_command(folder: Path, port: int) -> list[str]:
    """Start it as it comes: a new request makes it drop the stream that it is working on."""
    return _command(folder, port, interrupt_requests=True)


def _command(folder: Path, port: int, *, interrupt_requests: bool) -> list[str]:
    python = str(python_of(NAME))
    model = folder / "tiny-llama.gguf"
    subprocess.run([python, MODEL_WRITER, model], check=True)

    # One thread: for matrices this small, waking a second one costs more than it does.
    every_model = {"model": str(model), "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    chat = {"model_alias": LLAMA_CPP_PYTHON.chat_model, "n_ctx": CONTEXT_LENGTH}
    embedding = {"model_alias": LLAMA_CPP_PYTHON.embedding_model, "n_ctx": 512, "embedding": True}
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "interrupt_requests": interrupt_requests,
        "models": [
            every_model | chat | {"logits_all": False},
            every_model | embedding,
        ],
    }
    config = folder / "llama-cpp.json"
    config.write_text(json.dumps(settings))
    return [python, "-m", "llama_cpp.server", "--config_file", str(config)]


LLAMA_CPP_PYTHON = Engine(
    name=NAME,
    set_up=set_up,
    command=command,
    chat_model="tiny-llama",
    embedding_model="tiny-llama-embedding",
    context_length=CONTEXT_LENGTH,
    endless=ENDLESS,
)

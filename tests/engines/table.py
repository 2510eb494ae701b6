"""The engines that are tested: every test in this folder runs with each of them."""

from tests.engines.engine import Engine
from tests.engines.llama_cpp_python import LLAMA_CPP_PYTHON

ENGINES: tuple[Engine, ...] = (LLAMA_CPP_PYTHON,)

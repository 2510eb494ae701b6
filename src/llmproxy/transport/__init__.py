"""HTTP to the model servers. Knows nothing of models, prompts or events."""

from llmproxy.transport.interface import Call, Outgoing, Transport

__all__ = ["Call", "Outgoing", "Transport"]

"""A small OpenAI-compatible server to try things against. No model, and it says so.

What it answers is made of what it was asked; what it counts as tokens are words.
"""

MODEL = "llmproxy-demo"
READY = "demo upstream listens on "  # and its URL: the first line it prints

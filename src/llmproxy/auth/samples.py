"""Secrets that everybody knows: what stands in examples, and what a form got for an answer."""

import re

_SAMPLES = frozenset(
    {"abc", "admin", "adminkey", "apikey", "changeit", "changeme", "changethis", "default"}
    | {"dummy", "empty", "example", "foo", "foobar", "hunter2", "key", "letmein", "llmproxy"}
    | {"none", "null", "pass", "passw0rd", "password", "placeholder", "qwerty", "replaceme"}
    | {"root", "sample", "secret", "secretkey", "string", "supersecret", "test", "testkey"}
    | {"todo", "token", "true", "false", "undefined"}
)
_PATTERN = re.compile(
    r"<.*>|\$?\{.*\}"
    r"|(sk|key)?0*1234?5?6?7?8?9?0?"
    r"|(sk|key)?abc(def)?(123)?"
    r"|(sk|key)?(?P<one>.)(?P=one)*"
    r"|(sk)?(my|your|insert|put|some)(own)?(admin|api|secret|new|openai|llmproxy)*"
    r"(key|token|secret|password)(goes)?(here)?"
)
_DECORATION = re.compile(r"[-_. ]")


def is_sample(text: str) -> bool:
    """Tell whether a secret is one that everybody knows."""
    plain = _DECORATION.sub("", text.lower()).removeprefix("sk")
    return any(
        each in _SAMPLES or _PATTERN.fullmatch(each) is not None
        for each in (plain, plain.removeprefix("llmproxy"))
    )

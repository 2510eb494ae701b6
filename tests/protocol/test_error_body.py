"""How an error looks on the wire."""

import orjson
import pytest

from llmproxy.errors import InvalidRequest, UpstreamBroken
from llmproxy.protocol.error_body import error_object, last_event
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.records import Ending

BROKEN = UpstreamBroken('engine said "no"\nand left.')


def test_the_object_is_the_one_of_openai() -> None:
    """Message, type, param and code: all four, whether they say something or not."""
    error = InvalidRequest("`model` must be a string.", param="model")

    assert error_object(error) == {
        "error": {
            "message": "`model` must be a string.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "invalid_request",
        }
    }
    assert error_object(BROKEN)["error"]["param"] is None


@pytest.mark.parametrize("ending", [Ending.CHAT, Ending.UNKNOWN], ids=lambda e: e.value)
def test_chat_gets_a_data_event(ending: Ending) -> None:
    """A client of chat reads `data:` and looks for `error` in it."""
    event = last_event(BROKEN, ending)

    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    assert orjson.loads(event[6:]) == error_object(BROKEN)


def test_messages_get_their_own_event() -> None:
    """As Anthropic's clients expect it: a named event of type error."""
    name, data = last_event(BROKEN, Ending.MESSAGES).strip().split(b"\n")

    assert name == b"event: error"
    assert orjson.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {"type": "api_error", "message": BROKEN.detail, "code": "upstream_error"},
    }


def test_responses_get_their_own_event() -> None:
    """As the Responses API has it: the fields stand at the top."""
    name, data = last_event(BROKEN, Ending.RESPONSES).strip().split(b"\n")

    assert name == b"event: error"
    assert orjson.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "code": "upstream_error",
        "message": BROKEN.detail,
        "param": None,
    }


def test_ndjson_gets_a_line() -> None:
    """One line, although the message has two."""
    line = last_event(BROKEN, Ending.NDJSON)

    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert orjson.loads(line) == error_object(BROKEN)


@pytest.mark.parametrize(
    "ending", [each for each in Ending if each is not Ending.UNKNOWN], ids=lambda e: e.value
)
def test_what_we_say_is_recognised_as_an_error_and_never_as_the_end(ending: Ending) -> None:
    """A proxy behind a proxy understands the other's last word."""
    tail = StreamTail(ending)

    tail.note(last_event(BROKEN, ending))

    assert tail.told_of_an_error()
    assert not tail.finished()

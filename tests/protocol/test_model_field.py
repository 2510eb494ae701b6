"""Another model's name in the same body."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmproxy.protocol.model_field import with_model

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
inner = st.dictionaries(st.sampled_from(["model", "content"]), names, max_size=2)


@given(names, names, inner, inner, st.booleans())
def test_only_the_model_that_is_asked_for_changes(
    old: str, new: str, before: dict[str, str], after: dict[str, str], escaped: bool
) -> None:
    """Whatever else in the body is called so."""
    assume(old != new)
    asked = {"tools": [before], "model": old, "messages": [after]}

    body = with_model(json.dumps(asked, ensure_ascii=escaped).encode(), new)

    assert body is not None
    assert json.loads(body) == {**asked, "model": new}


def test_the_other_bytes_stay_as_they_came() -> None:
    """Spaces, numbers and the order of the keys are the caller's."""
    body = b'{ "n" : 1.0,\n "model"\t:  "a\\"b" , "seed":18446744073709551616}'

    assert (
        with_model(body, "ä")
        == '{ "n" : 1.0,\n "model"\t:  "ä" , "seed":18446744073709551616}'.encode()
    )


@pytest.mark.parametrize("body", [b"{}", b'{"messages":[{"model":"x"}]}'])
def test_without_a_model_one_is_put_in(body: bytes) -> None:
    """A rule may name the model that the caller has left open; what else stands there stays."""
    assert json.loads(with_model(body, "new")) == {**json.loads(body), "model": "new"}

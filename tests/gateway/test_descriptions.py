"""The document says of a request exactly the fields that are read; whatever else it says is held to by fuzzing."""

from __future__ import annotations

import pytest

from agentrl.errors import GatewayError
from agentrl.gateway.contract import SessionSettings, WireRequest
from agentrl.gateway.dialects.chat import FIELDS, ChatCompletions
from agentrl.gateway.dialects.completions import Completions

DIALECTS = {
    "ChatRequest": (ChatCompletions(), {"messages": [{"role": "user", "content": "Hi"}]}),
    "CompletionRequest": (Completions(), {"prompt": "Hi"}),
}


def parse(dialect, body):
    return dialect.parse(WireRequest("POST", dialect.routes[0], {}, {}, body, SessionSettings(training=False)))


def code_of(dialect, body):
    """The code with which a body is refused, if it is."""
    try:
        parse(dialect, body)
    except GatewayError as error:
        return error.code
    return None


@pytest.mark.parametrize("name", DIALECTS)
def test_every_field_that_is_described_is_known_and_no_other_is(name):
    dialect, least = DIALECTS[name]
    schema = dialect.describe()["components"]["schemas"][name]
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(least)
    for field in schema["properties"]:
        parse(dialect, {field: None, **least})  # Null says nothing, of any field.
        assert code_of(dialect, least | {field: [[["x"]]]}) != "unknown_parameter", field
    assert code_of(dialect, least | {"guided_json": {}}) == "unknown_parameter"


def test_no_field_that_is_read_is_left_out():
    schema = ChatCompletions().describe()["components"]["schemas"]["ChatRequest"]
    assert set(schema["properties"]) == FIELDS

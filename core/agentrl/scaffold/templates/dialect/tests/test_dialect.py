"""What the dialect's rules are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
from agentrl import GatewayError
from agentrl.gateway.contract import (
    Call,
    Completion,
    ModelRequest,
    SessionSettings,
    WireRequest,
)
from agentrl.testing import DialectConformance

from agentrl_plugin_name.dialect import PluginNameDialect

pytest_plugins = ["agentrl.testing"]

DIALECT = PluginNameDialect()


class TestContract(DialectConformance):
    """What every dialect owes to its clients and to the gateway."""

    dialect = "plugin-name"
    asks: ClassVar[Sequence[Mapping[str, Any]]] = ({"prompt": "What is 40 + 2?"},)
    streams = True

    @classmethod
    def read(cls, body: bytes, *, streamed: bool) -> Any:
        answers = [json.loads(line) for line in body.splitlines()]
        text = "".join(answer.get("text", "") for answer in answers)
        return text, answers[-1]["id"], answers[-1]["complete"]


def request(**body: Any) -> WireRequest:
    settings = SessionSettings(training=True)
    return WireRequest("POST", DIALECT.routes[0], {}, {}, body, settings)


def parsed(**body: Any) -> ModelRequest:
    asked = DIALECT.parse(request(**body))
    assert isinstance(asked, ModelRequest)
    return asked


def test_a_prompt_is_what_the_user_says() -> None:
    asked = parsed(prompt="Hello.", length=16)
    assert asked.messages == [{"role": "user", "content": "Hello."}]
    assert asked.fields == {"max_tokens": 16}


@pytest.mark.parametrize(
    ("body", "param"), [({}, "prompt"), ({"prompt": "x", "colour": "red"}, "colour")]
)
def test_what_it_cannot_do_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parsed(**body)
    assert caught.value.param == param
    reply = DIALECT.refuse(caught.value)
    assert isinstance(reply.body, bytes)
    assert param in json.loads(reply.body)["error"]


def test_an_answer_holds_the_text_and_whether_it_is_complete() -> None:
    call = Call("id-1", None, {}, {"content": "Hello!"}, "length", 3, 2)
    asked = [parsed(prompt="Hello.")]
    completions = [Completion(call, "policy")]
    reply = DIALECT.respond(request(prompt="Hello."), asked, completions)
    assert isinstance(reply.body, bytes)
    answer = json.loads(reply.body)
    assert answer == {"id": "id-1", "text": "Hello!", "complete": False}


def test_an_override_replaces_fields_and_drops_them() -> None:
    body = {"prompt": "x", "temperature": 0, "seed": 1}
    override = {"temperature": 1.0, "seed": None, "top_p": None}
    changed = DIALECT.override(body, override)
    assert changed == ({"prompt": "x", "temperature": 1.0}, ("temperature", "seed"))

"""Requests that ask for a form, through the real engine and `tiny`: what comes back, what is recorded and refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from agentrl.errors import GatewayError, UnsupportedSampling
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.contract import Completion, ModelRequest
from agentrl.gateway.relay import _chat_body
from agentrl.inference.contract import BackendContext, Capabilities, Grammar
from agentrl.inference.engine.backend import TorchBackend
from agentrl.tokens.contract import Sampled
from agentrl.tokens.selection import load_renderer

ASK = [{"role": "user", "content": "What is 12 * 34?"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "op": {"enum": ["+", "*"]}},
    "required": ["a", "op"],
    "additionalProperties": False,
}


def tool(name: str, *, strict: bool = True) -> dict[str, Any]:
    function = {"name": name, "description": "Works it out.", "parameters": SCHEMA} | (
        {"strict": True} if strict else {}
    )
    return {"type": "function", "function": function}


Complete = Callable[..., Completion]


class Engine:
    """A gateway before the torch engine."""

    def __init__(self, folder: Path, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.backend = TorchBackend(BackendContext(folder, max_concurrency=8, options={"device": "cpu"}))
        self.capabilities = runner.run(self.backend.start())
        self.completer = EngineCompleter(self.backend, self.capabilities, load_renderer(folder))
        self.gateway = Gateway(self.completer)

    def session(self, **settings: Any) -> Session:
        return self.gateway.open_session(SessionSettings(**{"training": True, "max_tokens": 120} | settings))

    def complete(self, session: Session, **asked: Any) -> Completion:
        request = ModelRequest(**{"body": {}, "messages": ASK} | asked)
        return self.runner.run(self.completer.complete(session, request))


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[Engine]:
    with asyncio.Runner() as runner:
        engine = Engine(tiny_folder, runner)
        yield engine
        runner.run(engine.backend.stop())


def sampled(session: Session) -> list[Sampled]:
    return [span.sampled for span in session.tree.spans if span.sampled is not None]


def test_a_tool_that_must_be_called_is_called(engine: Engine) -> None:
    session = engine.session()
    for _ in range(4):
        call = engine.complete(session, tools=[tool("calculate"), tool("other")], must_call=("other",)).call
        assert call.finish_reason == "tool_calls"
        assert not call.message["content"]
        for made in call.message["tool_calls"]:
            assert made["function"]["name"] == "other"
            arguments = json.loads(made["function"]["arguments"])
            assert arguments["op"] in "+*"
            assert 0 <= arguments["a"] <= 99
    assert all(source.constrained for source in sampled(session))


def test_one_call_alone_ends_with_the_end_of_the_turn(engine: Engine) -> None:
    session = engine.session()
    names = ("calculate", "other")
    completions = [
        engine.complete(session, tools=[tool(name, strict=True) for name in names], must_call=names, one_call=True)
        for _ in range(6)
    ]
    for completion in completions:
        assert len(completion.call.message["tool_calls"]) == 1
        assert completion.tokens.ids[-1] in engine.completer.renderer.stop_ids


def test_an_answer_follows_the_schema_that_was_asked_for(engine: Engine) -> None:
    session = engine.session()
    form = Grammar("json_schema", json.dumps(SCHEMA))
    for _ in range(4):
        call = engine.complete(session, grammar=form).call
        assert call.finish_reason == "stop"
        assert set(json.loads(call.message["content"])) == {"a", "op"}
    (source, *_) = sampled(session)
    assert source.constrained
    assert source.stop_ids == tuple(sorted(engine.completer.renderer.stop_ids))


def test_strict_tools_leave_the_choice_free_and_are_no_longer_unmet(engine: Engine) -> None:
    session = engine.session()
    asked = {"tools": [tool("calculate")], "unmet": ("strict", "something")}
    calls = [engine.complete(session, **asked).call for _ in range(12)]
    assert {call.unmet for call in calls} == {("something",)}
    for call in calls:
        for made in call.message.get("tool_calls") or ():
            assert set(json.loads(made["function"]["arguments"])) == {"a", "op"}


def test_what_was_recorded_is_read_back_from_json(engine: Engine) -> None:
    session = engine.session()
    engine.complete(session, grammar=Grammar("regex", "[0-9]{1,4}"))
    tree = session.tree
    assert type(tree).from_json(json.loads(json.dumps(tree.to_json()))) == tree
    assert sampled(session)[0].grammar is not None


def test_free_requests_are_not_constrained(engine: Engine) -> None:
    session = engine.session()
    engine.complete(session, tools=[tool("calculate", strict=False)])
    (source,) = sampled(session)
    assert not source.constrained
    assert source.grammar is None
    assert source.stop_ids == ()


@pytest.mark.parametrize(
    ("asked", "param", "override"),
    [
        ({"grammar": Grammar("regex", "([a-z")}, "response_format", "response_format: null"),
        ({"grammar": Grammar("json_schema", '{"type": "objct"}')}, "response_format", "response_format: null"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "no"}}}]},
         "tools", "strict: false"),
    ],
)  # fmt: skip
def test_a_form_that_is_wrong_is_the_requests_fault(engine, asked, param, override) -> None:
    session = engine.session()
    with pytest.raises(GatewayError) as refused:
        engine.complete(session, **asked)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert override in str(refused.value.fix)
    assert not session.calls
    assert engine.complete(session).call.message["content"] is not None


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"grammar": Grammar("json_object")}, "response_format"),
        ({"tools": [tool("calculate")], "must_call": ("calculate",)}, "tool_choice"),
    ],
)
def test_a_backend_without_grammars_refuses_and_names_the_way_out(engine, asked, param, monkeypatch) -> None:
    without = replace(engine.capabilities, sampling=engine.capabilities.sampling - {"grammar"})
    monkeypatch.setattr(engine.completer, "capabilities", without)
    with pytest.raises(GatewayError, match=param) as refused:
        engine.complete(engine.session(), **asked)
    assert refused.value.status == 400
    assert f"rollout.override: {{{param}: null}}" in str(refused.value.fix)


def test_a_backend_without_grammars_counts_strict_tools_as_unmet(engine, monkeypatch) -> None:
    without = replace(engine.capabilities, sampling=engine.capabilities.sampling - {"grammar"})
    monkeypatch.setattr(engine.completer, "capabilities", without)
    session = engine.session()
    assert engine.complete(session, tools=[tool("calculate")], unmet=("strict",)).call.unmet == ("strict",)
    assert not sampled(session)[0].constrained


def test_biases_of_logits_are_for_evaluations(engine: Engine) -> None:
    fields = {"logit_bias": {"20": 100}, "max_tokens": 5}
    completion = engine.complete(engine.session(training=False), fields=fields)
    assert completion.tokens.ids == (20,) * 5
    with pytest.raises(GatewayError, match="logit_bias"):
        engine.complete(engine.session(), fields=fields)
    for wrong in ({"x": 1}, {"1": 101}, {"1": "1"}, [1], {"1": True}):
        with pytest.raises(GatewayError, match="logit_bias") as refused:
            engine.complete(engine.session(training=False), fields={"logit_bias": wrong})
        assert refused.value.status == 400
    with pytest.raises(UnsupportedSampling, match="logit_bias"):
        engine.complete(engine.session(training=False), fields={"logit_bias": {"99999999": 1}})


class Step(pydantic.BaseModel):
    """What an agent may want as an answer."""

    a: int = pydantic.Field(ge=0, le=99)
    op: Literal["+", "*"]
    units: list[Literal["cm", "kg"]] = pydantic.Field(max_length=2)
    after: Literal["stop", "go on"] | None


@pytest.mark.parametrize("streamed", [False, True])
def test_the_sdk_parses_what_it_asked_for(streamed: bool, engine: Engine) -> None:
    session = engine.session(max_tokens=300)

    async def ask() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(
            base_url=session.base_url, api_key=session.api_key, http_client=engine.gateway.http_client(), max_retries=0
        ) as client:
            chat = client.chat.completions
            asked = {"model": "x", "messages": ASK}
            forced = {"tools": [openai.pydantic_function_tool(Step)], "tool_choice": "required"}
            if not streamed:
                return (await chat.parse(**asked, response_format=Step), await chat.parse(**asked, **forced))
            async with chat.stream(**asked, response_format=Step) as stream:
                answer = await stream.get_final_completion()
            async with chat.stream(**asked, **forced) as stream:
                return answer, await stream.get_final_completion()

    answer, called = engine.runner.run(ask())
    assert isinstance(answer.choices[0].message.parsed, Step)
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Step)
    assert not called.choices[0].message.content
    assert {call.unmet for call in session.calls} == {()}


def test_an_endpoint_is_asked_for_the_same_form() -> None:
    tools = [tool("calculate"), tool("other")]

    def body(**asked: Any) -> dict[str, Any]:
        return dict(_chat_body(ModelRequest(**{"body": {}, "messages": ASK, "tools": tools} | asked)))

    named = {"type": "function", "function": {"name": "other"}}
    assert body()["tool_choice"] == "auto"
    assert body(must_call=("other",))["tool_choice"] == named
    assert body(must_call=("calculate", "other"))["tool_choice"] == "required"
    several = body(must_call=("calculate", "other"), tools=[*tools, tool("third")])["tool_choice"]
    assert several["allowed_tools"]["mode"] == "required"
    assert named in several["allowed_tools"]["tools"]
    assert body(grammar=Grammar("json_object"))["response_format"] == {"type": "json_object"}
    form = body(grammar=Grammar("json_schema", json.dumps(SCHEMA)))["response_format"]
    assert form["json_schema"]["schema"] == SCHEMA
    with pytest.raises(GatewayError, match="keeps to no regex"):
        body(grammar=Grammar("regex", "a"))


def test_capabilities_say_what_the_engine_can_do(engine: Engine) -> None:
    assert {"grammar", "logit_bias"} <= engine.capabilities.sampling
    assert {"grammar", "logit_bias"}.isdisjoint(Capabilities(8, 1).sampling)

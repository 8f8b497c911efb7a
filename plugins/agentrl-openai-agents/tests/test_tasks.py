"""What the agent is asked, what its tools are given, and what its answer is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from agents import Agent, RunContextWrapper, SQLiteSession, function_tool
from pydantic import BaseModel

from agentrl.testing import tool_call

PLAIN = Agent(name="Plain", instructions="Be brief.")
SYSTEM = ("system", "Be brief.")


@pytest.fixture
def said(heard: Any) -> Any:
    """Gives roles and texts of the messages of an episode's call."""

    def said(played: Any, call: int = -1) -> list[tuple[str, Any]]:
        return [(message["role"], message["content"]) for message in heard(played.episode.calls[call])]

    return said


@pytest.mark.parametrize("field", ["question", "prompt", "input"])
def test_a_text_is_what_the_user_says(play: Any, said: Any, field: str) -> None:
    played = play(PLAIN, "It is 85.", data={"id": "7", field: "47 + 38?", "answer": "85"})
    assert said(played) == [SYSTEM, ("user", "47 + 38?")]
    assert played.episode.reward == 1.0


def test_the_config_may_name_the_field(play: Any, said: Any) -> None:
    data = {"question": "no", "problem": "47 + 38?", "answer": "85"}
    assert said(play(PLAIN, "It is 85.", data=data, input="problem"))[-1] == ("user", "47 + 38?")


def test_messages_are_a_conversation_that_goes_on(play: Any, said: Any) -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "47 + 38?"},
    ]
    played = play(PLAIN, "It is 85.", data={"messages": messages, "answer": "85"})
    assert said(played) == [SYSTEM, ("user", "Hello"), ("assistant", "Hi"), ("user", "47 + 38?")]


def test_several_texts_are_turns_of_one_session(play: Any, said: Any) -> None:
    played = play(PLAIN, "47, yes.", "It is 85.", data={"question": ["Take 47.", "Add 38."], "answer": "85"})
    assert said(played) == [SYSTEM, ("user", "Take 47."), ("assistant", "47, yes."), ("user", "Add 38.")]
    assert [call.fork_reason for call in played.episode.calls] == [None, None]
    assert (played.episode.answer, played.episode.reward) == ("It is 85.", 1.0)


@pytest.mark.parametrize(
    ("data", "kwargs", "reason"),
    [
        ({"topic": "x"}, {}, "no field 'question' or 'prompt' or 'input' or 'messages', only 'topic'"),
        ({"question": "x"}, {"input": "problem"}, "no field 'problem', only 'question'"),
        ({"question": 7}, {}, "field 'question' is 7"),
        ({"question": []}, {}, "field 'question' is []"),
        ({"question": ["x", {"role": "user", "content": "y"}]}, {}, "field 'question' is ['x', {"),
    ],
)
def test_a_task_that_says_nothing_to_the_agent_is_named(play: Any, data: Any, kwargs: Any, reason: str) -> None:
    failure = play(PLAIN, "It is 85.", data=data, **kwargs).episode.failure
    assert failure.side == "agent"
    assert reason in failure.reason


@pytest.mark.parametrize("limit", [0, -1, "three"])
def test_a_limit_that_allows_nothing_is_refused(play: Any, limit: Any) -> None:
    failure = play(PLAIN, "It is 85.", max_turns=limit).episode.failure
    assert failure.side == "config"
    assert f"max_turns={limit!r}" in failure.reason


@function_tool
def look_up(context: RunContextWrapper[Any]) -> str:
    """What the context knows."""
    return repr(context.context)


@dataclass
class Shelf:
    number: str


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that a config may refer to as ``its_module``."""
    module = ModuleType("its_module")
    monkeypatch.setitem(sys.modules, "its_module", module)
    return module


@pytest.mark.parametrize(
    ("context", "seen"),
    [(False, "None"), (True, "{'question': '?', 'answer': '85'}"), ("its_module:make", "Shelf(number='85')")],
)
def test_tools_are_given_the_context_that_the_config_asks_for(
    play: Any, heard: Any, module: ModuleType, context: Any, seen: str
) -> None:
    module.make = lambda data: Shelf(data["answer"])
    agent = Agent(name="Reader", tools=[look_up])
    data = {"question": "?", "answer": "85"}
    played = play(agent, tool_call("look_up", {}), "It is 85.", data=data, context=context)
    assert heard(played.episode.calls[-1])[-1]["content"] == seen


class Remembering(SQLiteSession):
    made: list[Remembering] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__("mine")
        self.made.append(self)
        self.closed = False

    def close(self) -> None:
        super().close()
        self.closed = True


def test_each_episode_has_a_session_of_the_authors_kind_and_ends_it(
    player_of: Any, heard: Any, module: ModuleType
) -> None:
    module.Remembering = Remembering
    Remembering.made.clear()
    task = {"question": "47 + 38?", "answer": "85"}
    with player_of(PLAIN, session="its_module:Remembering") as running:
        episodes = running.play(["It is 85."], task, task, task)
    assert [len(heard(played.episode.calls[0])) for played in episodes] == [2, 2, 2]
    assert [session.closed for session in Remembering.made] == [True, True, True]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nothing", "agent.kwargs.session='nothing' refers to nothing"),
        ("its_module:missing", "module 'its_module' has no 'missing'"),
        ("its_module:number", "agent.kwargs.session='its_module:number' is int, which cannot be called"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(play: Any, module: ModuleType, reference: str, reason: str) -> None:
    module.number = 7
    failure = play(PLAIN, "It is 85.", session=reference).episode.failure
    assert failure.side == "config"
    assert reason in failure.reason


class Sum(BaseModel):
    total: int


@dataclass
class Parts:
    sums: list[Sum]


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        (Sum, '{"total": 85}', {"total": 85}),
        (Parts, '{"response": {"sums": [{"total": 85}]}}', {"sums": [{"total": 85}]}),
        (list[Sum], '{"response": [{"total": 85}]}', [{"total": 85}]),
        (int, '{"response": 85}', 85),
        (str, "It is 85.", "It is 85."),
    ],
)
def test_output_of_every_type_is_what_json_makes_of_it(play: Any, kind: Any, text: str, answer: Any) -> None:
    played = play(Agent(name="Adder", output_type=kind), text, override={"response_format": None})
    assert played.episode.answer == answer


def test_a_tool_whose_result_is_nothing_is_an_empty_answer_not_a_rejection(play: Any) -> None:
    silent = function_tool(lambda: None, name_override="end")
    agent = Agent(name="Ender", tools=[silent], tool_use_behavior="stop_on_first_tool")
    played = play(agent, tool_call("end", {}))
    assert (played.episode.outcome, played.episode.reward) == ("rewarded", 0.0)

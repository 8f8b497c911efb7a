"""A native ``ChatAgent``, trained as it is."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
from camel.agents import ChatAgent
from camel.memories import ChatHistoryMemory, ScoreBasedContextCreator
from camel.messages import BaseMessage
from camel.terminators import ResponseWordsTerminator
from camel.toolkits import FunctionTool
from camel.toolkits.base import BaseToolkit, RegisteredAgentToolkit
from camel.types import RoleType
from natives import Play, calculator, call, elsewhere, solver

from agentrl import AgentError, ConfigError
from agentrl_camel.adapter import AdaptedAgent
from agentrl_camel.copying import Copier
from agentrl_camel.policy import COUNTER, Policy


def copied(agent: ChatAgent, **how: Any) -> ChatAgent:
    """A copy, as an episode has it."""
    return Copier(agent).copy(Policy("http://elsewhere.invalid/v1", "key", None), **how)


class TestAnEpisode:
    def test_its_last_words_are_the_answer(self, play: Play) -> None:
        played = play(solver(), call(), "It is 85.")
        assert played.answer == "It is 85."
        assert played.said() == [
            ("system", "Solve the problem."),
            ("user", "What is 47 + 38?"),
            ("assistant", ""),
            ("tool", "85"),
        ]

    def test_its_tools_are_offered(self, play: Play) -> None:
        tools = play(solver(), "85").calls[0].request["tools"]
        assert tools == [FunctionTool(calculator).get_openai_tool_schema()]

    def test_a_call_of_a_tool_does_not_fork_the_token_tree(self, play: Play) -> None:
        played = play(solver(), call(arguments='{ "expression":"47+38" }'), "It is 85.")
        assert [made.fork_reason for made in played.calls] == [None, None]
        assert played.calls[1].parent == played.calls[0].id

    def test_the_config_of_its_model_is_kept_and_nothing_streams(self, play: Play) -> None:
        request = play(solver(model=elsewhere(temperature=0.7, max_tokens=50, stream=True)), "85").calls[0].request
        assert (request["temperature"], request["max_tokens"]) == (0.7, 50)
        assert "stream" not in request

    def test_models_that_take_turns_keep_each_its_config(self, play: Play) -> None:
        agent = solver(model=[elsewhere(temperature=0.5), elsewhere(temperature=0.9)])
        assert [made.request["temperature"] for made in play(agent, call(), "85").calls] == [0.5, 0.9]

    def test_the_original_is_only_read(self, play: Play) -> None:
        agent = solver()
        before = {name: value for name, value in vars(agent).items() if name != "_memory"}
        tools = dict(agent.tool_dict)
        play(agent, call(), "85")
        assert before == {name: value for name, value in vars(agent).items() if name != "_memory"}
        assert tools == agent.tool_dict
        assert [record.memory_record.message.content for record in agent.memory.retrieve()] == ["Solve the problem."]

    def test_a_call_of_an_external_tool_is_the_answer(self, play: Play) -> None:
        played = play(solver(tools=[], external_tools=[calculator]), call())
        assert played.answer == [{"name": "calculator", "arguments": {"expression": "47+38"}}]


class TestWhatIsSaid:
    def test_a_list_of_texts_is_said_in_turn(self, play: Play) -> None:
        played = play(solver(), "One.", "Two.", data={"messages": ["First?", "Second?"]})
        assert played.answer == "Two."
        assert played.said()[1:] == [("user", "First?"), ("assistant", "One."), ("user", "Second?")]
        assert played.calls[1].fork_reason is None

    @pytest.mark.parametrize(("data", "said"), [({"prompt": "a", "input": "b"}, "a"), ({"input": "b"}, "b")])
    def test_the_usual_fields_are_looked_for(self, data: dict[str, Any], said: str, play: Play) -> None:
        assert play(solver(), "85", data=data).said()[-1] == ("user", said)

    def test_another_field_is_named_by_a_kwarg(self, play: Play) -> None:
        assert play(solver(), "85", data={"question": "a", "riddle": "b"}, input="riddle").said()[-1] == ("user", "b")

    @pytest.mark.parametrize("value", [7, [], [{"role": "user", "content": "hi"}], None, ["a", 1]])
    def test_anything_but_text_is_refused(self, value: object, play: Play) -> None:
        error = play(solver(), "85", data={"question": value}).answer
        assert isinstance(error, AgentError)
        assert "field 'question' of the task is" in str(error)

    def test_a_task_without_a_known_field_is_refused(self, play: Play) -> None:
        error = play(solver(), "85", data={"riddle": "b"}).answer
        assert isinstance(error, AgentError)
        assert "only 'riddle'" in str(error)
        assert "agent.kwargs.input" in str(error)


class TestACopy:
    def test_every_setting_of_camels_is_accounted_for(self) -> None:
        passed = set(inspect.getsource(Copier.copy).replace("=", " ").split())
        ours = {"retry_attempts", "retry_delay", "summary_window_ratio", "stream_accumulate", "memory", "agent_id"}
        settings = set(inspect.signature(ChatAgent.__init__).parameters) - {"self"}
        assert settings - passed == ours, "a setting that copies would lose, or one that CAMEL no longer has"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("max_iteration", 3),
            ("mask_tool_output", True),
            ("step_timeout", 5.0),
            ("tool_execution_timeout", 4.0),
            ("prune_tool_calls_from_memory", True),
            ("token_limit", 4000),
            ("output_language", "French"),
        ],
    )
    def test_it_keeps_a_setting(self, name: str, value: object) -> None:
        assert getattr(copied(solver(**{name: value})), name) == value

    def test_its_system_message_is_the_original_one(self) -> None:
        agent = solver(output_language="French")
        assert agent.system_message is not None
        assert copied(agent).chat_history == [{"role": "system", "content": agent.system_message.content}]

    def test_it_keeps_the_message_window(self, play: Play) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CAMEL's, that the window is full.
            played = play(solver(message_window_size=1), "1", "2", data={"messages": ["a", "b"]})
        assert played.said() == [("system", "Solve the problem."), ("user", "b")]

    def test_its_terminators_begin_anew(self) -> None:
        terminator = ResponseWordsTerminator({"TASK_DONE": 2})
        copier = Copier(solver(response_terminators=[terminator]))
        message = BaseMessage("assistant", RoleType.ASSISTANT, {}, "TASK_DONE")
        for _ in range(2):
            (own,) = copier.copy(Policy("http://elsewhere.invalid/v1", "key", None)).response_terminators
            assert [own.is_terminated([message])[0] for _ in range(2)] == [False, True]

    def test_it_has_tools_of_its_own_where_a_toolkit_can_be_copied(self) -> None:
        class Notes(BaseToolkit):
            def clone_for_new_session(self, new_session_id: str | None = None) -> Notes:
                return Notes()

            def note(self, text: str) -> str:
                """Notes a text.

                Args:
                    text: What to note.
                """
                return text

        agent = solver(tools=[FunctionTool(Notes().note)])
        assert copied(agent).tool_dict["note"].func.__self__ is not agent.tool_dict["note"].func.__self__

    def test_a_toolkit_that_holds_its_agent_and_cannot_be_copied_is_refused(self) -> None:
        class Reflection(BaseToolkit, RegisteredAgentToolkit):
            def reflect(self, text: str) -> str:
                """Reflects.

                Args:
                    text: On what.
                """
                return text

        toolkit = Reflection()
        agent = solver(tools=[FunctionTool(toolkit.reflect)], toolkits_to_register_agent=[toolkit])
        with pytest.raises(ConfigError, match="'reflect' is of a Reflection"):
            AdaptedAgent(agent)

    def test_an_agent_of_another_class_is_refused(self) -> None:
        class Careful(ChatAgent):
            pass

        with pytest.raises(ConfigError, match=r"it is a Careful .*-> ChatAgent"):
            AdaptedAgent(Careful("Solve.", model=elsewhere()))

    def test_an_agent_with_another_memory_is_refused(self) -> None:
        class Remembers(ChatHistoryMemory):
            pass

        with pytest.raises(ConfigError, match="its memory is a Remembers"):
            AdaptedAgent(solver(memory=Remembers(ScoreBasedContextCreator(COUNTER, 1000))))


class TestAnAgentThatHoldsAConversation:
    @pytest.fixture
    def agent(self) -> ChatAgent:
        agent = solver()
        agent.record_message(BaseMessage.make_assistant_message("assistant", "I am ready."))
        return agent

    def test_has_to_say_what_becomes_of_it(self, agent: ChatAgent, play: Play) -> None:
        error = play(agent, "85").answer
        assert isinstance(error, AgentError)
        assert "agent.kwargs.with_memory" in str(error)

    def test_can_begin_each_episode_with_it(self, agent: ChatAgent, play: Play) -> None:
        for _ in range(2):
            assert [role for role, _ in play(agent, "85", with_memory=True).said()] == ["system", "assistant", "user"]

    def test_can_leave_it_out(self, agent: ChatAgent, play: Play) -> None:
        assert [role for role, _ in play(agent, "85", with_memory=False).said()] == ["system", "user"]

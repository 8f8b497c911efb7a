"""Functions and classes that make a ``ChatAgent``."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from camel.agents import ChatAgent, CriticAgent
from natives import Play, elsewhere, solver

from agentrl import AgentError, ConfigError, Plugins
from agentrl_camel.adapter import AdaptedFactory

if TYPE_CHECKING:
    from camel.agents import ChatAgent as OnlyForTypeCheckers  # noqa: F401


def plain() -> ChatAgent:
    return ChatAgent("Solve.", model=elsewhere(temperature=0.5))


def given_the_model(model: Any) -> ChatAgent:
    return ChatAgent("Solve.", model=model)


def given_the_task(data: dict[str, Any]) -> ChatAgent:
    return ChatAgent(f"The answer is not {data['answer']}.", model=elsewhere())


async def asynchronous(model: Any, data: dict[str, Any]) -> ChatAgent:
    return ChatAgent(f"Solve {data['question']}", model=model)


class Maker:
    def __call__(self, model: Any) -> ChatAgent:
        return ChatAgent("Made.", model=model)


class Careful(ChatAgent):
    def __init__(self, model: Any) -> None:
        super().__init__("Carefully.", model=model)


class TestWhatIsOne:
    @pytest.mark.parametrize("factory", [plain, given_the_model, given_the_task, asynchronous, Maker, Maker(), Careful])
    def test_it_is_adapted(self, factory: Any, play: Play) -> None:
        assert play(factory, "85").answer == "85"

    def test_the_annotation_may_be_for_type_checkers_only(self) -> None:
        def made():
            return plain()

        made.__annotations__["return"] = "camel_agents.ChatAgent"
        assert isinstance(Plugins().adapt_agent(made), AdaptedFactory)

    @pytest.mark.parametrize("other", [ChatAgent, CriticAgent, solver.__class__, lambda: 1, 7, "x", None, print, int])
    def test_anything_else_is_not(self, other: Any) -> None:
        assert Plugins().adapt_agent(other) is other

    def test_one_that_needs_more_is_refused(self) -> None:
        def needs(style: str) -> ChatAgent:
            return plain()

        with pytest.raises(ConfigError, match=r"needs cannot be called: missing a required argument: 'style'"):
            Plugins().adapt_agent(needs)

    def test_a_class_of_factories_that_needs_more_is_refused(self) -> None:
        class Configured(Maker):
            def __init__(self, style: str) -> None:
                self.style = style

            def __call__(self, model: Any) -> ChatAgent:
                return ChatAgent(self.style, model=model)

        with pytest.raises(ConfigError, match="missing a required argument: 'style'"):
            Plugins().adapt_agent(Configured)
        assert isinstance(Plugins().adapt_agent(Configured("brief")), AdaptedFactory)

    def test_an_agent_of_agentrls_that_is_camels_too_stays_what_it_is(self, play: Play) -> None:
        class Both(ChatAgent):
            def __init__(self) -> None:
                super().__init__("Solve.", model=elsewhere())

            async def run(self, data: dict[str, Any]) -> float:
                return 0.5

        for agent in (Both, Both()):
            assert Plugins().adapt_agent(agent) is agent

    def test_nothing_of_camel_is_imported_to_tell(self) -> None:
        code = (
            "import sys; from agentrl_camel.hooks import agentrl_adapt_agent as adapt\n"
            "async def agent(data, *, base_url) -> float: ...\n"
            "class Agent:\n    async def run(self, data): ...\n"
            "found = [adapt(each) for each in (agent, Agent, Agent(), sys, 7, lambda: 0, dict)]\n"
            "assert found == [None] * 7, found\n"
            "assert not {'camel', 'openai', 'torch'} & sys.modules.keys()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestInAnEpisode:
    def test_the_config_of_a_model_of_its_own_is_kept(self, play: Play) -> None:
        assert play(plain, "85").calls[0].request["temperature"] == 0.5

    def test_it_is_given_the_task(self, play: Play) -> None:
        assert play(given_the_task, "85").said()[0] == ("system", "The answer is not 85.")

    def test_an_agent_that_it_makes_only_once_is_refused(self, play: Play) -> None:
        only = solver()

        def shared() -> ChatAgent:
            return only

        assert play(shared, "85").answer == "85"
        error = play(shared, "85").answer
        assert isinstance(error, AgentError)
        assert "another episode" in str(error)

    def test_something_else_that_it_makes_is_refused(self, play: Play) -> None:
        def wrong() -> ChatAgent:
            return "no agent"  # type: ignore[return-value]

        error = play(wrong, "85").answer
        assert isinstance(error, AgentError)
        assert "wrong made a str" in str(error)

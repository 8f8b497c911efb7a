"""What an agent is given, and what is refused before a run starts."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from agentrl.agents.binding import bind_agent
from agentrl.agents.contract import AgentWorkflow
from agentrl.errors import ConfigError

CONNECTION = {"base_url": "http://x/v1", "api_key": "k", "http_client": object(), "model": "policy"}


def run(agent: Any, kwargs: dict[str, Any] | None = None) -> Any:
    return asyncio.run(bind_agent(agent, kwargs or {}, name="a").call({"question": "?"}, CONNECTION))


class Agent:
    async def run(self, data, **extra_kwargs):
        return sorted(extra_kwargs)


class Configured:
    built = 0

    def __init__(self, max_turns: int = 2):
        type(self).built += 1
        self.max_turns = max_turns

    async def run(self, data, *, api_key):
        return self.max_turns, api_key


async def function(data, *, base_url, style="plain"):
    return base_url, style


class Called:
    def __init__(self, max_turns: int = 2):
        self.max_turns = max_turns

    async def __call__(self, data, *, api_key):
        return self.max_turns, api_key


class Inherits(Called):
    pass


def test_a_class_and_an_instance_and_a_function_are_agents():
    everything = ["api_key", "base_url", "http_client", "model"]
    assert run(Agent) == everything
    assert run(Agent()) == everything
    assert run(function) == ("http://x/v1", "plain")


@pytest.mark.parametrize("agent", [Called, Inherits, Called(), functools.partial(Called())])
def test_what_is_called_is_an_agent_as_what_runs_is(agent: Any):
    assert run(agent) == (2, "k")
    assert bind_agent(agent, {}, name="a").is_async


def test_a_class_that_is_called_is_built_once_an_episode_with_its_own_kwargs():
    assert run(Called, {"max_turns": 5}) == (5, "k")


def test_a_class_whose_instances_cannot_be_called_is_no_agent():
    class Neither:
        pass

    with pytest.raises(ConfigError, match="'a' is no agent: the class Neither has no `run` and cannot be called"):
        bind_agent(Neither, {}, name="a")


def test_only_what_the_signature_takes_is_passed():
    async def bare(data):
        return data

    assert run(bare) == {"question": "?"}


def test_kwargs_go_to_init_or_run_whichever_takes_them():
    assert run(Configured, {"max_turns": 5}) == (5, "k")
    assert run(function, {"style": "brief"}) == ("http://x/v1", "brief")


def test_a_class_is_built_once_an_episode():
    before = Configured.built
    bound = bind_agent(Configured, {}, name="a")
    assert Configured.built == before
    for _ in range(2):
        asyncio.run(bound.call({}, CONNECTION))
    assert Configured.built == before + 2


def test_a_configured_model_wins_over_the_connection():
    async def named(data, *, model):
        return model

    assert run(named, {"model": "gpt-4o"}) == "gpt-4o"


def test_callables_and_static_methods_are_agents():
    class Callable:
        async def __call__(self, data, *, model):
            return model

    class Static:
        @staticmethod
        async def run(data, *, model):
            return model

    assert run(Callable()) == run(Static) == run(Static()) == "policy"
    assert run(functools.partial(function, style="terse")) == ("http://x/v1", "terse")


def test_a_wrapped_async_function_is_still_async():
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    assert run(wrapper) == ("http://x/v1", "plain")


def test_an_unknown_kwarg_names_its_near_match():
    with pytest.raises(ConfigError, match=r"takes no 'max_turn' \(agent.kwargs.max_turn\).*'max_turns'"):
        bind_agent(Configured, {"max_turn": 3}, name="a")


def test_a_parameter_that_nothing_provides_is_refused():
    async def needy(data, *, database):
        return database

    with pytest.raises(ConfigError, match=r"needs 'database'.*agent.kwargs.database"):
        bind_agent(needy, {}, name="a")
    assert run(needy, {"database": "x"}) == "x"


def test_a_synchronous_agent_is_refused_with_the_fix():
    class Sync:
        def run(self, data):
            return 1.0

    for agent in (Sync, Sync(), lambda data: 1.0):
        with pytest.raises(ConfigError, match=r"not async.*async def.*rollout\.mode=subproc"):
            bind_agent(agent, {}, name="a")


def test_an_async_generator_is_refused():
    async def generator(data):
        yield 1.0

    with pytest.raises(ConfigError, match="async generator"):
        bind_agent(generator, {}, name="a")


@pytest.mark.parametrize("thing", [3, "text", object(), type("NoRun", (), {})])
def test_an_object_without_run_is_no_agent(thing):
    with pytest.raises(ConfigError, match="no `run`"):
        bind_agent(thing, {}, name="a")


def test_open_kwargs_get_what_nobody_names():
    class Open:
        def __init__(self, **kwargs):
            self.kwargs = kwargs

        async def run(self, data, *, style="plain"):
            return self.kwargs, style

    assert run(Open, {"max_turns": 2, "style": "brief"}) == ({"max_turns": 2}, "brief")


def test_a_kwarg_that_init_and_run_name_goes_to_both():
    class Both:
        def __init__(self, style):
            self.style = style

        async def run(self, data, *, style):
            return self.style, style

    assert run(Both, {"style": "brief"}) == ("brief", "brief")


def test_the_optional_base_class_hides_no_unknown_kwarg():
    class Derived(AgentWorkflow):
        async def run(self, data, *, style="plain"):
            return style

    assert run(Derived, {"style": "brief"}) == "brief"
    with pytest.raises(ConfigError, match="takes no 'styel'"):
        bind_agent(Derived, {"styel": "brief"}, name="a")


def test_an_agent_that_could_not_be_called_is_refused():
    async def no_task(**kwargs):
        return 1.0

    async def by_position(data, base_url, /):
        return 1.0

    for agent in (no_task, by_position):
        with pytest.raises(ConfigError, match=r"cannot be called.*by position"):
            bind_agent(agent, {}, name="a")


class Plain:
    def __init__(self, style="plain"):
        self.style = style

    def run(self, data, *, model):
        return self.style, model


def plain(data, *, model):
    return "plain", model


class PlainCallable:
    def __call__(self, data, *, model):
        return "plain", model


def test_a_synchronous_agent_is_bound_where_it_may_be_one():
    for agent in (Plain, Plain(), plain, PlainCallable(), functools.partial(plain)):
        bound = bind_agent(agent, {}, name="a", allow_sync=True)
        assert not bound.is_async
        assert bound.call({}, CONNECTION) == ("plain", "policy")
    bound = bind_agent(Plain, {"style": "brief"}, name="a", allow_sync=True)
    assert bound.call({}, CONNECTION) == ("brief", "policy")


def test_an_async_agent_stays_one_where_it_need_not_be():
    bound = bind_agent(function, {}, name="a", allow_sync=True)
    assert bound.is_async
    assert asyncio.run(bound.call({}, CONNECTION)) == ("http://x/v1", "plain")
    assert bind_agent(function, {}, name="a").is_async


def test_generators_and_wrong_kwargs_of_synchronous_agents_are_refused_too():
    def generator(data):
        yield 1.0

    with pytest.raises(ConfigError, match=r"is a generator.*return the reward"):
        bind_agent(generator, {}, name="a", allow_sync=True)
    with pytest.raises(ConfigError, match="not async"):
        bind_agent(generator, {}, name="a")
    with pytest.raises(ConfigError, match=r"takes no 'styel'.*'style'"):
        bind_agent(Plain, {"styel": "brief"}, name="a", allow_sync=True)


def test_an_agent_says_that_it_returns_answers():
    class Answers(Agent):
        returns_answer = True

    def answers(data):
        return "an answer"

    answers.returns_answer = True
    assert bind_agent(Answers, {}, name="a").returns_answer
    assert bind_agent(Answers(), {}, name="a").returns_answer
    assert bind_agent(answers, {}, name="a", allow_sync=True).returns_answer
    assert not bind_agent(Agent, {}, name="a").returns_answer


def test_what_an_agent_takes_is_known_before_it_runs():
    bound = bind_agent(function, {}, name="a")
    assert bound.takes("base_url")
    assert not bound.takes("http_client")

"""Exceptions that are outcomes: which they are, and what is none whatever its kind."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from agentrl.agents.binding import bind_agent
from agentrl.errors import BackendError, ConfigError, EpisodeTimeout, PluginError, PolicyError

REQUEST = httpx.Request("POST", "http://gateway/v1/chat/completions")


def status_error(status):
    return openai.APIStatusError("no", response=httpx.Response(status, request=REQUEST), body=None)


def chained(error, other):
    error.__cause__ = other
    return error


class Misbehaved(ValueError):
    """Derived from what is an outcome."""


OUTCOMES = [
    json.JSONDecodeError("Expecting value", "{", 0),
    Misbehaved("too many retries"),
    ExceptionGroup("tasks", [Misbehaved("a"), ExceptionGroup("more", [ValueError("b")])]),
    chained(Misbehaved("the prompt is too long"), status_error(400)),
    status_error(400),
]
FAILURES = [
    LookupError("no such tool"),
    ExceptionGroup("tasks", [Misbehaved("a"), LookupError("b")]),
    EpisodeTimeout("too slow"),
    BackendError("the engine died"),
    *(status_error(status) for status in (408, 429, 500, 503)),
    openai.APIConnectionError(request=REQUEST),
    chained(Misbehaved("no answer"), status_error(500)),
    chained(Misbehaved("no answer"), httpx.ConnectError("refused", request=REQUEST)),
]


async def agent(data):
    """Nothing is done."""


def ended(error, *, is_async=True):
    """What ends an episode whose agent raises ``error``."""

    async def agent(data):
        raise error

    def plain(data):
        raise error

    kinds = ["builtins:ValueError", "openai:APIError"]
    bound = bind_agent(agent if is_async else plain, {}, name="agent", allow_sync=True, outcomes=kinds)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (what it is, is asked)
        asyncio.run(bound.call({}, {})) if is_async else bound.call({}, {})
    return caught.value


@pytest.mark.parametrize("reference", ["json:JSONDecodeError", "json.JSONDecodeError"])
def test_an_exception_is_named_with_a_colon_or_by_its_dotted_path(reference):
    async def failing(data):
        json.loads("{")

    bound = bind_agent(failing, {}, name="agent", outcomes=[reference])
    with pytest.raises(PolicyError, match="JSONDecodeError"):
        asyncio.run(bound.call({}, {}))


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
@pytest.mark.parametrize("error", OUTCOMES, ids=repr)
def test_an_exception_of_a_kind_that_is_an_outcome_is_the_policys_mistake(error, is_async):
    mistake = ended(error, is_async=is_async)
    assert isinstance(mistake, PolicyError)
    assert mistake.answer == ""
    assert type(error).__name__ in str(mistake)
    assert mistake.__cause__ is error


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_any_other_stays_what_it_is_and_so_does_what_broke_around_the_agent(error):
    assert ended(error) is error


def test_an_outcome_that_is_one_already_keeps_its_answer():
    error = PolicyError("no tool", answer="42")
    assert ended(error) is error


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("ValueError", r"'ValueError', which names no exception \(write builtins:ValueError\)"),
        ("UnexpectedModelBehavior", r"names no exception \(write pkg\.mod:Exception, as in pydantic_ai\.exceptions:"),
        ("no_such_framework:Error", r"there is no agent\.outcomes module 'no_such_framework'"),
        ("json:JSONDecodeErorr", r"agent\.outcomes: module 'json' has no 'JSONDecodeErorr' \(did you mean 'JSONDec"),
        ("json:loads", r"'json:loads', which is no exception that can be an outcome"),
        ("json:JSONDecoder", "does not derive from Exception"),
        ("asyncio:CancelledError", "does not derive from Exception"),
        ("builtins:KeyboardInterrupt", "does not derive from Exception"),
        ("nowhere.py:Error", r"agent\.outcomes file 'nowhere\.py' does not exist"),
    ],
)
def test_a_name_that_stands_for_none_is_an_error_that_says_so(reference, said):
    with pytest.raises(ConfigError, match=said):
        bind_agent(agent, {}, name="agent", outcomes=[reference])


def test_a_module_that_does_not_load_is_its_plugins_error(tmp_path):
    (tmp_path / "framework.py").write_text("raise LookupError('no licence')")
    with pytest.raises(PluginError, match="LookupError: no licence"):
        bind_agent(agent, {}, name="agent", outcomes=[f"{tmp_path}/framework.py:Error"])

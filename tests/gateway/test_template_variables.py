"""``chat_template_kwargs`` and ``reasoning_effort``: they reach the chat template, are refused, or are counted."""

from __future__ import annotations

import asyncio

import httpx2
import openai
import pytest
from tests.gateway.conftest import CONTEXT, Connection, ScriptedBackend
from tests.tokens.families import official

from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.tokens.selection import load_renderer

ASK = {"role": "user", "content": "What is 12 * 34?"}
SAID = {"role": "assistant", "content": "It is 408."}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
OPENED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def thinker(make_tokenizer):
    """A gateway before a model whose template reads ``enable_thinking``."""
    renderer = load_renderer(make_tokenizer(official("qwen3")))
    gateway = Gateway(EngineCompleter(ScriptedBackend(renderer), Capabilities(CONTEXT, 8), renderer))
    yield gateway
    gateway.stop()


@pytest.fixture
def session(thinker):
    return thinker.open_session(SessionSettings(training=True))


def call(gateway, session, *messages, **extra):
    async def create():
        async with Connection(gateway, httpx2, in_process=True).client(session, max_retries=0) as client:
            return await client.chat.completions.create(model="x", messages=list(messages), **extra)

    gateway.completer.backend.says("It is 408.")
    return asyncio.run(create())


def prompts(gateway):
    renderer = gateway.completer.renderer
    return [renderer.vocabulary.decode(list(request.prompt_ids)) for request in gateway.completer.backend.requests]


def test_a_variable_reaches_the_template(thinker, session):
    call(thinker, session, ASK, extra_body=OFF)
    call(thinker, session, ASK)
    off, on = prompts(thinker)[-2:]
    assert off.endswith(OPENED)
    assert on.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_no_effort_is_no_thinking_where_the_template_knows_only_that(thinker, session, effort):
    call(thinker, session, ASK, reasoning_effort=effort)
    assert prompts(thinker)[-1].endswith(OPENED)
    assert session.calls[0].unmet == ()


def test_a_level_that_the_template_does_not_know_is_served_and_counted(thinker, session):
    call(thinker, session, ASK, reasoning_effort="high", verbosity="low")
    assert session.calls[0].unmet == ("reasoning_effort", "verbosity")
    assert prompts(thinker)[-1].endswith("<|im_start|>assistant\n")


def test_a_variable_that_it_does_not_read_is_refused_and_the_override_drops_it(thinker, session):
    unread = {"chat_template_kwargs": {"thinking_budget": 3}}
    with pytest.raises(openai.BadRequestError, match=r"does not read 'thinking_budget' \(it reads .*enable_thinking"):
        call(thinker, session, ASK, extra_body=unread)
    thinker.completer.backend.script.clear()
    assert (session.calls, len(session.tree)) == ((), 0)
    free = thinker.open_session(SessionSettings(training=True, override={"chat_template_kwargs": None}))
    call(thinker, free, ASK, extra_body=unread)
    assert free.calls[0].overridden == ("chat_template_kwargs",)


def test_equal_variables_continue_a_conversation_and_others_fork_with_the_reason(thinker, session):
    on = {"chat_template_kwargs": {"enable_thinking": True}}
    call(thinker, session, ASK, extra_body=on)
    call(thinker, session, ASK, SAID, ASK, extra_body=on)
    call(thinker, session, ASK, SAID, ASK, extra_body=OFF)
    first, second, third = session.calls
    assert (second.parent, third.parent) == (first.id, first.id)
    assert (second.fork_reason, third.fork_reason) == (None, "template variables changed")


def test_where_the_template_rewrites_what_a_variable_wrote_it_forks_for_that_reason(thinker, session):
    call(thinker, session, ASK, extra_body=OFF)
    call(thinker, session, ASK, SAID, ASK, extra_body=OFF)
    assert session.calls[1].fork_reason == "thinking dropped by the template"


def test_choices_of_a_seeded_request_differ_and_repeat(thinker):
    seeds = []
    for _ in range(2):
        session = thinker.open_session(SessionSettings(training=True, seed_key=(1,)))
        thinker.completer.backend.says("It is 408.", "It is 408.")
        call(thinker, session, ASK, n=3, seed=5)
        seeds.append(sorted(request.sampling.seed for request in thinker.completer.backend.requests[-3:]))
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3

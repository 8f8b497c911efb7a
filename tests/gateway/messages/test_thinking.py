"""The field ``thinking``, before a model whose chat template can switch thinking off."""

from __future__ import annotations

import pytest
from tests.gateway.messages.conftest import Caller
from tests.gateway.test_template_variables import OPENED, prompts, thinker  # noqa: F401  # A fixture.

from agentrl.gateway import SessionSettings

ASKED = {
    "disabled": ({"thinking": {"type": "disabled"}}, True, ()),
    "enabled": ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, False, ("thinking.budget_tokens",)),
    "adaptive": ({"thinking": {"type": "adaptive"}}, False, ()),
    "nothing": ({}, False, ()),
    "an effort": ({"output_config": {"effort": "high"}}, False, ("reasoning_effort",)),
    "a variable": ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, True, ()),
}


@pytest.mark.parametrize("what", ASKED)
def test_thinking_is_switched_where_the_template_has_a_switch(thinker, what):  # noqa: F811
    fields, off, unmet = ASKED[what]
    session = thinker.open_session(SessionSettings(training=True))
    thinker.completer.backend.says("It is 408.")
    Caller(thinker, True, "whole").ask(session, **fields)
    assert prompts(thinker)[-1].endswith(OPENED) == off
    assert session.calls[0].unmet == unmet

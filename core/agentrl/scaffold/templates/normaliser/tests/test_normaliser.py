"""What the rule replaces, and what it leaves alone."""

import pytest

from agentrl_plugin_name.normaliser import PluginNameNormaliser

RULE = PluginNameNormaliser(PluginNameNormaliser.Settings())


def test_requests_of_two_sessions_read_alike() -> None:
    texts = [f"You are in Session {number}. Add." for number in (4711, 8)]
    assert {RULE(text) for text in texts} == {"You are in Session ?. Add."}


@pytest.mark.parametrize("text", ["", "Session of Ann", "There are 12 apples."])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert RULE(text) == text


def test_what_is_written_instead_is_a_key() -> None:
    settings = PluginNameNormaliser.Settings(replacement="one")
    assert PluginNameNormaliser(settings)("Session 1") == "Session one"

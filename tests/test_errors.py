"""The texts that errors are made of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import agentrl
from agentrl.errors import PolicyError, shortened, shown


def test_a_text_is_cut_between_words_and_says_so() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("exactly 10", 10) == "exactly 10"
    assert shortened("one two three", 12) == "one two…"
    assert shortened("one two three", 8) == "one two…"
    assert shortened("unbreakable-word", 8) == "unbreak…"
    assert shortened("a unbreakable-word", 8) == "a unbre…"
    for longest in range(2, 40):
        assert len(shortened("some words, and: others (of these) ", longest)) <= longest


def test_no_message_of_an_error_is_cut_in_the_middle_of_a_word() -> None:
    """Cuts by a number of characters are for names and data, never for the words of another error."""
    core = Path(agentrl.__path__[0])
    cut = re.compile(r"(one_line|str|repr|reason_of)\(\w+\)\[:\d+\]|![rs]:\.\d+\}")
    files = [path for path in core.rglob("*.py") if "testing" not in path.parts and "templates" not in path.parts]
    assert [str(path.relative_to(core)) for path in files if cut.search(path.read_text())] == []


def test_a_value_is_shown_whatever_it_is() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown("a text", 80) == "'a text'"
    assert shown("many words of it", 12) == "'many words…"
    assert shown(Shy()) == "a Shy"
    assert shown(10**5000) == "an integer of 16610 bits"


def test_a_policy_runs_into_no_limit_that_nobody_knows() -> None:
    assert PolicyError("no answer", limit="turns").limit == "turns"
    with pytest.raises(ValueError, match=r"limit='time' is no limit .* context, turns, tokens, pass"):
        PolicyError("no answer", limit="time")  # type: ignore[arg-type]

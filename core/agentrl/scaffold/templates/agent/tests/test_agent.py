"""What the agent's own rules are."""

import pytest

from agentrl_plugin_name.agent import score


@pytest.mark.parametrize(
    ("text", "reward"),
    [("12", 1.0), ("3 + 9 is 12.", 1.0), ("12 or 13", 0.0), ("twelve", 0.0), ("", 0.0)],
)
def test_the_last_number_of_a_reply_counts(text: str, reward: float) -> None:
    assert score(text, "12") == reward

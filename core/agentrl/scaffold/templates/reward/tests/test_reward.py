"""What the reward's own rules are."""

import pytest
from agentrl import RewardError

from agentrl_plugin_name.reward import PluginNameReward


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("3 + 9 is 12.", 1.0), ("12 or 13", 0.25), ("twelve", 0.0), ("", 0.0)],
)
def test_an_attempt_is_worth_something(answer: str, reward: float) -> None:
    score = PluginNameReward(PluginNameReward.Settings(attempt=0.25))
    assert score(answer, {"answer": "12"}) == reward


def test_a_task_without_an_answer_is_an_error_not_a_zero() -> None:
    score = PluginNameReward(PluginNameReward.Settings())
    with pytest.raises(RewardError, match="no 'answer'"):
        score("12", {"question": "What is 3 + 9?"})

"""The built-in rewards hold to the contract of rewards."""

from agentrl.testing import RewardConformance

pytest_plugins = ["agentrl.testing"]

TASK = {"question": "What is 40 + 2?", "answer": "42"}


class TestNumericMatch(RewardConformance):
    reward = "numeric-match"
    right = (("It is 42.", TASK),)
    wrong = (("It is 24.", TASK), ("", TASK))

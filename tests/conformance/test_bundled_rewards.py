"""The built-in rewards hold to the contract of rewards."""

from agentrl.testing import RewardConformance

pytest_plugins = ["agentrl.testing"]

TASK = {"question": "What is 40 + 2?", "answer": "42"}
WRONG = (("24", TASK), ("", TASK), ("forty-two", TASK))


class TestExactMatch(RewardConformance):
    reward = "exact-match"
    right = (("42", TASK), (" 42\n", TASK))
    wrong = (*WRONG, ("It is 42.", TASK))


class TestNumericMatch(RewardConformance):
    reward = "numeric-match"
    right = (("It is 42.", TASK), ("42.0", TASK))
    wrong = WRONG


class TestRegexMatch(RewardConformance):
    reward = {"name": "regex", "pattern": r"is (\d+)"}  # noqa: RUF012
    right = (("It is 42.", TASK),)
    wrong = (*WRONG, ("42", TASK))


class TestMathVerify(RewardConformance):
    reward = "math-verify"
    right = ((r"\boxed{\frac{84}{2}}", TASK), ("42", TASK))
    wrong = WRONG


class TestReasoningGym(RewardConformance):
    reward = "reasoning-gym"
    tasks = {"name": "reasoning-gym", "dataset": "basic_arithmetic", "size": 2}  # noqa: RUF012

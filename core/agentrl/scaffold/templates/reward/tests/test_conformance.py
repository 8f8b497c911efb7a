"""The reward ``plugin-name`` does what agentrl asks of every reward."""

from agentrl.testing import RewardConformance

pytest_plugins = ["agentrl.testing"]


class TestPluginName(RewardConformance):
    reward = "plugin-name"
    right = (("3 + 9 is 12.", {"answer": "12"}),)
    wrong = (("3 + 9 is 13.", {"answer": "12"}), ("No idea.", {"answer": "12"}))

"""Rewards: what an agent's answer is worth.

``contract`` says what a reward function is, ``scoring`` loads the one that a config names and calls it, and
``matching`` and ``reasoning`` hold those that are built in.
"""

from agentrl.rewards.scoring import call_reward, load_reward

__all__ = ["call_reward", "load_reward"]

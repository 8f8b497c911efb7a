"""Rewards: what an agent's answer is worth."""

from agentrl.rewards.scoring import call_reward, load_reward

__all__ = ["call_reward", "load_reward"]

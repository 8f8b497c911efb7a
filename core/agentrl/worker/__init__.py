"""Agents in another process, or another interpreter: ``python -m agentrl.worker`` is that process.

It needs agentrl-core without its extras, and whatever the agent needs. ``protocol`` is what it and the
rollout say to each other.
"""

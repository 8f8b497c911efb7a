"""Agents in another process, or another interpreter: ``python -m agentrl.worker`` is that process.

It needs agentrl-core without its extras, and whatever the agent needs. ``protocol`` is what it and the rollout send
each other; ``__main__`` forks a supervisor off the process that runs agents; ``lifecycle`` is that process's life, and
``episodes`` runs its episodes; ``variables`` leads agents that read their endpoint from the environment to the right
episode.
"""

"""Agents in another process, or another interpreter: ``python -m agentrl.worker`` is that process.

It needs agentrl-core without its extras, and whatever the agent needs. ``protocol`` is what it and the rollout say to
each other, ``serving`` a worker's life. Async agents are run by ``coroutines``, others by ``functions``; ``variables``
leads those that are told nothing to their episode; ``supervisor`` and ``forks`` keep other processes in their place.
"""

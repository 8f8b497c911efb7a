"""Trains agents of the OpenAI Agents SDK with agentrl, unchanged.

``hooks`` recognises them, ``adapter`` holds the agentrl agent that they become, and ``conversation`` runs them, with
the policy as their ``model``. Importing this package, or its hooks, imports nothing of the SDK.
"""

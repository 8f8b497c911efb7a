"""Trains agents of the OpenAI Agents SDK with agentrl, unchanged.

``hooks`` recognises them, ``adapter`` is what they become, ``conversation`` runs them. Importing this package,
or its hooks, imports nothing of the SDK.
"""

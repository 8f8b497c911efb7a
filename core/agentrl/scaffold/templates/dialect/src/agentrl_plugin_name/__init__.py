"""The dialect ``plugin-name`` for agentrl."""

"""The rule of staleness: how old the oldest token of an episode may be when a step trains it.

Versions count optimiser steps: the step that makes version ``v + 1`` starts from the weights of version ``v``.
Staleness is that ``v`` minus the version of the oldest token; at ``max_staleness`` 0 training is on-policy.

The rule is applied when a session is opened: ``training/loop.py`` puts the versions that it allows into
``SessionSettings.versions``, and the gateway refuses a completion with tokens of any other.
"""

from __future__ import annotations

__all__ = ["MAX_STALENESS", "oldest_version"]

MAX_STALENESS = 0
"""The bound that training keeps: every token of a step is sampled under the weights that the step changes."""


def oldest_version(version: int, max_staleness: int) -> int:
    """The oldest policy version whose tokens an episode may hold to be trained by weights of ``version``.

    A session that is opened under ``version`` may carry tokens of the versions from this one to ``version``.
    """
    return max(0, version - max_staleness)

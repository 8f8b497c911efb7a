"""What every inference backend has to hold to."""

from __future__ import annotations

from agentrl.testing.backends.exactness import Exactness
from agentrl.testing.backends.lifecycle import Lifecycle
from agentrl.testing.backends.requests import Requests
from agentrl.testing.backends.weights import WeightUpdates

__all__ = ["BackendConformance"]


class BackendConformance(WeightUpdates, Exactness, Requests, Lifecycle):
    """Tests of one inference backend. Subclass it with a name that begins with ``Test``, and set ``backend``.

    The backend is started once for all of them; pytest runs those of the last base first, so that updates come last.
    """

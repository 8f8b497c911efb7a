"""What every inference backend has to hold to, on a real server."""

from __future__ import annotations

import pytest
from real import KEYS, START_S

from agentrl.testing import BackendConformance

pytestmark = pytest.mark.real


class TestVllm(BackendConformance):
    backend = "agentrl_vllm.backend:VllmBackend"
    options = KEYS
    update_tokens = 950
    timeout = 60.0
    start_timeout = START_S

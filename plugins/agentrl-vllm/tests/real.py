"""Real servers for tests, of the model tiny."""

from __future__ import annotations

import os
from typing import Any

PYTHON = os.environ.get("VLLM_PYTHON")
"""An interpreter with vLLM; where it is not set, the environment ``vllm`` is used."""

KEYS: dict[str, Any] = {"python": PYTHON} if PYTHON else {}
"""Of the backend."""

START_S = 240.0
"""How long a server may take to start."""

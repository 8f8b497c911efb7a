"""What a server answers that can be attached to for the model tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from agentrl.plugins import Plugins
from agentrl_vllm import attached

TINY = Path(str(Plugins().get("models", "tiny")))
GENERATE = "/inference/v1/generate"
WELL: dict[str, Any] = {
    "/health": [200, {}],
    "/version": [200, {"version": "0.32.0"}],
    GENERATE: [422, {}],
    "/is_sleeping": [200, {}],
    "/v1/models": [200, {"data": [{"id": "lora", "parent": "it"}, {"id": "it", "root": "/models/it"}]}],
    "/tokenize": [
        200,
        {"tokens": AutoTokenizer.from_pretrained(TINY).encode(attached._PROBE, add_special_tokens=False)},
    ],
}

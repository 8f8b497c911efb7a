"""An agent that speaks ``plugin-name``."""

from __future__ import annotations

import re
from typing import Any


async def solve(
    data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any
) -> float:
    reply = await http_client.post(
        f"{base_url}/plugin-name",
        headers={"Authorization": f"Bearer {api_key}"},
        json={"prompt": data["question"]},
    )
    reply.raise_for_status()
    numbers = re.findall(r"-?\d+", reply.json()["text"])
    return float(numbers[-1:] == [str(data["answer"])])

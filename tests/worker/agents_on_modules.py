"""An agent that uses the SDK as any does, and returns what has been imported by then."""

import sys

from openai import AsyncOpenAI


async def what_is_imported(data, *, base_url, api_key, http_client):
    async with AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client) as client:
        assert client.api_key == api_key
    return sorted(sys.modules)

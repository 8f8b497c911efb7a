"""The agent of the recorded runs, whose episodes end in every way."""

from __future__ import annotations

import itertools
from typing import Any

from openai import AsyncOpenAI

from agentrl import PolicyError, Reward
from agentrl_agents.calculator import SYSTEM, TOOL, use
from agentrl_agents.tasks import question, score


class EveryOutcome:
    """The calculator agent, with a second conversation beside the first, alternatives for its tokens, and rewards of
    two parts; of every nine episodes one fails and one is rejected."""

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> Any:
        begun = next(_BEGUN) % 9
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question(data)}]
        for _ in range(3):
            reply = await client.chat.completions.create(
                model="policy", messages=messages, tools=[TOOL], logprobs=True, top_logprobs=3
            )
            message = reply.choices[0].message
            if not message.tool_calls:
                break
            messages.append(message.model_dump(exclude_none=True))
            messages += [{"role": "tool", "tool_call_id": call.id, "content": use(call)} for call in message.tool_calls]
        else:
            raise PolicyError("no answer within 3 turns", limit="turns")
        again = [*messages[:1], {"role": "user", "content": f"{question(data)} Answer with a number alone."}]
        second = await client.chat.completions.create(model="policy", messages=again)
        if begun == 4:
            raise ValueError("the <b>table</b> of answers is not there")
        if begun == 7:
            return None
        first, other = score(message.content, data), score(second.choices[0].message.content, data)
        return Reward((first + other) / 2, first=first, second=other)


_BEGUN = itertools.count()

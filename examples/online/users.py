"""People who use an assistant and reward it: each asks for a sum, and likes an answer that is right and short.

AGENTRL_ADMIN_KEY=… python examples/online/users.py --url http://127.0.0.1:8000
"""

import argparse
import asyncio
import os
import random
import re
import statistics
import sys

import httpx
from openai import AsyncOpenAI, OpenAIError

LONG = 20
"""Characters beyond which an answer is worth half."""


def liked(answer: str, right: int) -> float:
    """What a person thinks of an answer, whose last number counts."""
    numbers = re.findall(r"-?\d+", answer)
    if not numbers or int(numbers[-1]) != right:
        return 0.0
    return 1.0 if len(answer) <= LONG else 0.5


async def person(service: httpx.AsyncClient, admin: dict[str, str], numbers: random.Random) -> float:
    """Open a session, ask, reward the answer and leave. Returns the reward."""
    left, right = numbers.randint(10, 99), numbers.randint(10, 99)
    opened = await service.post("/sessions", headers=admin, json={"metadata": {"left": left, "right": right}})
    session = opened.raise_for_status().json()
    own = {"Authorization": f"Bearer {session['api_key']}"}
    async with AsyncOpenAI(base_url=session["base_url"], api_key=session["api_key"]) as client:
        messages = [
            {"role": "system", "content": "Solve the problem. The last number you write is your answer."},
            {"role": "user", "content": f"What is {left} + {right}?"},
        ]
        reply = await client.chat.completions.create(model="policy", messages=messages)
    reward = liked(reply.choices[0].message.content or "", left + right)
    (await service.post("/sessions/current/rewards", headers=own, json={"reward": reward})).raise_for_status()
    (await service.post("/sessions/current/close", headers=own)).raise_for_status()
    return reward


async def use(url: str, admin_key: str, people: int, sessions: int, say: int) -> list[float]:
    """Have ``people`` use the service at once until there were so many ``sessions``; returns their rewards in order.

    Every ``say`` sessions the mean of the latest is printed. What ends the service ends them too.
    """
    admin = {"Authorization": f"Bearer {admin_key}"}
    rewards: list[float] = []
    begun = iter(range(sessions))
    async with httpx.AsyncClient(base_url=f"{url}/v1", timeout=120) as service:

        async def come_and_go(number: int) -> None:
            numbers = random.Random(number)
            for _ in begun:
                rewards.append(await person(service, admin, numbers))
                if len(rewards) % say == 0:
                    print(f"{len(rewards):5} sessions, mean reward {statistics.fmean(rewards[-say:]):.2f}", flush=True)

        await asyncio.gather(*map(come_and_go, range(people)))
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description="Use a served model, and reward it.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where `agentrl train online` serves")
    parser.add_argument("--people", type=int, default=16, help="how many use it at once")
    parser.add_argument("--sessions", type=int, default=1280, help="how many sessions there will be")
    given = parser.parse_args()
    key = os.environ.get("AGENTRL_ADMIN_KEY") or parser.error("set AGENTRL_ADMIN_KEY to the key of the service")
    try:
        asyncio.run(use(given.url, key, given.people, given.sessions, say=128))
    except (httpx.HTTPError, OpenAIError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        sys.exit(f"users.py: the service at {given.url} is not there, has ended or refuses: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

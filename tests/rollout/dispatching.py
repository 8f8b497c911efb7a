"""A dispatcher of agents that make no calls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from agentrl.agents.binding import bind_agent
from agentrl.gateway.contract import Call
from agentrl.rollout.dispatcher import Dispatcher, FailureBudget
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineRunner
from agentrl.tokens.contract import TokenTree


@dataclass
class Unused:
    """A session of an agent that never calls the model."""

    base_url: str = "http://gateway.invalid/v1"
    api_key: str = "none"
    http_client: object = None
    in_flight: int = 0
    waited: float = 0.0
    refusals: tuple[Exception, ...] = ()
    refused_last: bool = False
    calls: tuple[Call, ...] = ()
    tree: TokenTree = field(default_factory=TokenTree)

    def close(self) -> None:
        pass

    async def deliveries_known(self) -> None:
        pass


def dispatcher_of(agent, *, concurrency=4, budget=0.5, window=1000, kept=None):
    """A dispatcher of an agent that makes no calls; finished episodes are appended to ``kept``."""

    async def finished(episode):
        await asyncio.sleep(0)
        if kept is not None:
            kept.append(episode)

    runner = EpisodeRunner(InlineRunner(bind_agent(agent, {}, name="agent")), lambda _: Unused(), None, 30.0, 1)
    return Dispatcher(runner, concurrency, FailureBudget(budget, window), finished)


def in_time(scenario):
    async def main():
        async with asyncio.timeout(30):
            return await scenario

    return asyncio.run(main())

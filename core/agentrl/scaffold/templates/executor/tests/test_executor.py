"""What the executor's rules are."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from agentrl import EpisodeTimeout
from agentrl.rollout.contract import Activity

from agentrl_plugin_name.executor import PluginNameExecutor


def executed(call: Any, *tasks: Any, at_once: int = 2, seconds: float = 60) -> Any:
    """What ``call`` returns for each of ``tasks``, all of them started at once."""
    agent = SimpleNamespace(is_async=True, returns_answer=False, call=call)
    settings = PluginNameExecutor.Settings(at_once=at_once)
    spec: Any = SimpleNamespace(load=lambda: agent)
    executor: Any = PluginNameExecutor(spec, settings)

    async def run() -> list[Any]:
        async with executor.running(None) as runner:
            episodes = [
                runner.run(
                    task, {}, deadline_s=seconds, activity=lambda: Activity("asleep")
                )
                for task in tasks
            ]
            return await asyncio.gather(*episodes)

    return asyncio.run(run())


def test_no_more_than_so_many_run_at_once() -> None:
    now = most = 0

    async def call(data: dict[str, Any], connection: Any) -> float:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return data["n"]

    assert executed(call, *({"n": n} for n in range(6))) == list(range(6))
    assert most == 2


def test_an_agent_has_its_own_copy_of_the_task() -> None:
    async def call(data: dict[str, Any], connection: Any) -> Any:
        return data.pop("question")

    task = {"question": "What is 3 + 9?"}
    assert executed(call, task, task) == ["What is 3 + 9?"] * 2


def test_an_episode_that_takes_too_long_says_what_it_was_doing() -> None:
    async def call(data: dict[str, Any], connection: Any) -> None:
        await asyncio.sleep(60)

    with pytest.raises(EpisodeTimeout, match=r"more than 0\.01 s; it was asleep"):
        executed(call, {}, seconds=0.01)

"""What goes wrong in a worker costs the one episode that is to blame, whatever shares the worker with it."""

from __future__ import annotations

import asyncio
import os

import psutil
import pytest
from tests.rollout.batches import in_time, only_fault

from agentrl.rollout.subproc.process import WorkerLimits

MIB = 2**20


def tasks(fault=True, *, good=9):
    return [{"fault": fault}, *({} for _ in range(good))]


@pytest.mark.parametrize(
    ("agent", "fault", "reason"),
    [
        ("killed", True, "was ended by SIGKILL"),
        ("exited", 3, "ended with exit code 3 and no answer"),
        ("exited_well", True, "ended with exit code 0 and no answer"),
        ("segfaulted", True, "was ended by SIGSEGV"),
    ],
)
def test_an_agent_that_ends_its_process_costs_its_own_episode(batches, agent, fault, reason):
    lost = only_fault(batches.run(agent, tasks(fault)))
    assert lost.failure.side == "agent"
    assert lost.failure.reason.startswith(f"the agent's process {reason}")


@pytest.mark.parametrize("agent", ["waited", "stubborn", "blocked", "looped"])
def test_an_agent_that_never_ends_costs_its_own_episode(batches, agent):
    lost = only_fault(batches.run(agent, tasks(), timeout_s=4.0))
    assert lost.failure.side == "agent"


def test_a_synchronous_agent_that_never_ends_is_killed_and_costs_its_own_episode(batches):
    lost = only_fault(batches.run("synchronous", tasks(), timeout_s=4.0))
    assert lost.failure.side == "agent"
    assert "did not end within 4 s; it was in the agent's own code" in lost.failure.reason


def test_an_agent_that_goes_on_in_two_processes_is_one_episode(batches):
    episodes = batches.run("forked", tasks())
    assert [episode.reward for episode in episodes] == [1.0] * 10


@pytest.mark.parametrize("agent", ["printed", "printed_without_end"])
def test_an_agent_that_prints_a_gigabyte_costs_its_own_episode(batches, agent):
    lost = only_fault(batches.run(agent, tasks(1024 * MIB)))
    assert lost.failure.side == "agent"
    assert "printed more than 64 MiB during one episode, and was killed" in lost.failure.reason
    logs = batches.folder / "logs" / "workers"
    assert sum(path.stat().st_size for path in logs.iterdir()) < 2 * 2 * 9 * MIB


def test_an_agent_that_prints_much_but_not_too_much_is_none_the_worse(batches):
    episodes = batches.run("printed", tasks(16 * MIB), limits=WorkerLimits(printed=17 * MIB))
    assert [episode.reward for episode in episodes] == [1.0] * 10
    assert [episode.attempts for episode in episodes] == [1] * 10


def test_an_answer_that_json_cannot_carry_costs_its_own_episode_and_names_the_place(batches):
    lost = only_fault(batches.run("unfit", tasks()))
    assert lost.failure.side == "agent"
    assert "['answer'][1], a set" in lost.failure.reason


def test_a_task_that_json_cannot_carry_costs_its_own_episode_and_names_the_place(batches):
    lost = only_fault(batches.run("waited", [{"when": [{3, 4}]}, *({} for _ in range(9))]))
    assert lost.failure.side == "config"
    assert "data['when'][0], a set (put plain JSON values into the task" in lost.failure.reason


def test_what_an_agent_has_started_ends_with_its_worker(batches):
    only_fault(batches.run("left_children", tasks()))
    assert len(list(batches.folder.glob("child.*"))) >= 3  # Those that are still there fail the fixture.


def test_calls_that_agents_leave_in_threads_fill_no_worker_and_the_worker_is_replaced(batches):
    """More of them at once than the threads that one process lends, and then in each process that follows."""

    def workers():
        children = psutil.process_iter(["pid", "ppid", "cmdline"])  # Of one that has ended, no command is known.
        ours = [each.info for each in children if each.info["ppid"] == os.getpid()]
        return {info["pid"] for info in ours if "agentrl.worker" in (info["cmdline"] or ())}

    async def scenario():
        async with batches.runner("stuck", max_workers=1, concurrency=40) as runner:
            first, begun = await batches.episodes(runner, [{}] * 40), workers()
            while not batches.warnings or workers() & begun:  # noqa: ASYNC110  (other processes tell no event)
                await asyncio.sleep(0.05)
            return first, await batches.episodes(runner, [{}] * 40)

    first, second = asyncio.run(in_time(scenario()))
    assert [episode.reward for episode in first + second] == [1.0] * 80
    (warning,) = batches.warnings
    assert "worker 1 is replaced" in warning
    assert "a blocking call of the agent in a thread" in warning


def test_a_worker_that_is_to_be_replaced_runs_its_other_episodes_to_their_end(batches):
    episodes = batches.run("stuck_among_others", [{"fault": True}, *[{}] * 3], max_workers=1)
    assert [episode.reward for episode in episodes] == [0.5, 1.0, 1.0, 1.0]
    assert {episode.attempts for episode in episodes} == {1}
    assert "worker 1 is replaced" in batches.warnings[0]

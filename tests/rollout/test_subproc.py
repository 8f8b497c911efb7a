"""The subproc runner: what reaches an agent in another process, what comes back, and where episodes are run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.rollout.batches import QUICK, in_time, process_of

from agentrl.errors import AgentError, ConfigError, EpisodeTimeout, PolicyError, WorkerError
from agentrl.rollout.contract import Activity, AgentFacts

TRIVIAL = "async def agent(data): return 1.0\n"
CONNECTION = {"base_url": "http://gateway.invalid/v1", "model": "policy", "http_client": object()}


def connection(gateway):
    from agentrl.gateway import SessionSettings

    session = gateway.open_session(SessionSettings(training=True))
    return {**CONNECTION, "base_url": session.base_url, "api_key": session.api_key}


@pytest.fixture
def episode(batches):
    """Run one episode, or the scenario that is given a function which runs one."""

    def run(reference, data=None, *, scenario=None, **options):
        async def main():
            async with batches.runner(reference, **options) as runner:

                async def one(data=None, *, deadline_s=20.0, alone=False):
                    return await runner.run(
                        data or {},
                        connection(batches.gateway),
                        deadline_s=deadline_s,
                        activity=lambda: Activity("in call 2"),
                        alone=alone,
                    )

                return await (one(data) if scenario is None else scenario(one, runner))

        return asyncio.run(in_time(main()))

    return run


def test_an_agent_gets_its_task_its_kwargs_and_its_connection(agent_file, episode):
    reference = agent_file(
        "def agent(data, *, style, model, base_url, api_key):\n"
        "    data['items'].clear()\n"
        "    return [data, style, model, base_url[:7], api_key[:11]]\n"
    )
    task = {"items": [1, 2.5, None, True, "ü\ud800"]}
    returned = episode(process_of(reference, style="brief"), task)
    assert returned == [{"items": []}, "brief", "policy", "http://", "sk-agentrl-"]
    assert task["items"] == [1, 2.5, None, True, "ü\ud800"]


def test_what_is_known_of_the_agent_is_known_once_it_is_loaded(agent_file, batches):
    reference = agent_file("class agent:\n    returns_answer = True\n    def run(self, data): return 'x'\n")

    async def main():
        async with batches.runner(reference) as runner:
            return runner.facts

    assert asyncio.run(in_time(main())) == AgentFacts(is_async=False, returns_answer=True)


OPENAI = (
    "import openai\n"
    "client = openai.OpenAI()\n"
    "def agent(data):\n"
    "    said = [{'role': 'user', 'content': 'How many?'}]\n"
    "    reply = client.chat.completions.create(model='gpt-4o', messages=said)\n"
    "    return float('46' in reply.choices[0].message.content)\n"
)
ANTHROPIC = (
    "import anthropic\n"
    "client = anthropic.Anthropic()\n"
    "asked = {'model': 'claude', 'max_tokens': 100, 'messages': [{'role': 'user', 'content': 'How many?'}]}\n"
    "def agent(data):\n"
    "    return float('46' in client.messages.create(**asked).content[0].text)\n"
)
STREAMED = (
    "import os, anthropic\n"
    "asked = {'model': 'claude', 'max_tokens': 100, 'messages': [{'role': 'user', 'content': 'How many?'}]}\n"
    "async def agent(data):\n"
    "    token = os.environ['ANTHROPIC_AUTH_TOKEN']\n"
    "    async with anthropic.AsyncAnthropic(auth_token=token) as client, client.messages.stream(**asked) as stream:\n"
    "        return float('46' in await stream.get_final_text())\n"
)


@pytest.mark.parametrize("source", [OPENAI, ANTHROPIC, STREAMED], ids=["openai", "anthropic", "anthropic, streamed"])
def test_an_agent_that_reads_only_the_environment_is_captured(agent_file, batches, source):
    episodes = batches.run(agent_file(source), [{}] * 4)
    assert [(episode.reward, len(episode.calls)) for episode in episodes] == [(1.0, 1)] * 4


def test_async_episodes_share_a_worker_and_synchronous_ones_do_not(agent_file, episode, tmp_path):
    (tmp_path / "pids").mkdir()
    source = f"import asyncio, os, pathlib, time\npids = pathlib.Path({str(tmp_path / 'pids')!r})\nrunning = 0\n"

    async def crowd(one, runner):
        return await asyncio.gather(*(one() for _ in range(8)))

    # Each ends only once as many run as should: no episode is over before the others can begin.
    together = agent_file(
        source + "async def agent(data):\n"
        "    global running\n"
        "    running += 1\n"
        "    while running < 8: await asyncio.sleep(0.01)\n"
        "    return os.getpid()\n"
    )
    assert len(set(episode(together, scenario=crowd, concurrency=8, max_workers=1))) == 1
    apart = agent_file(
        source + "def agent(data):\n"
        "    pids.joinpath(str(os.getpid())).touch()\n"
        "    while len(os.listdir(pids)) < 2: time.sleep(0.01)\n"
        "    return os.getpid()\n"
    )
    assert len(set(episode(apart, scenario=crowd, concurrency=8, max_workers=2))) == 2


def test_an_episode_that_is_to_be_alone_is(agent_file, episode):
    reference = agent_file(
        "import asyncio\nrunning = 0\n"
        "async def agent(data):\n"
        "    global running\n"
        "    running += 1\n"
        "    seen = running\n"
        "    await asyncio.sleep(0.05)\n"
        "    seen = max(seen, running)\n"
        "    running -= 1\n"
        "    return seen\n"
    )

    async def mixed(one, runner):
        return await asyncio.gather(*(one(alone=number % 4 == 2) for number in range(16)))

    seen = episode(reference, scenario=mixed, concurrency=8, max_workers=1)
    assert seen[2::4] == [1] * 4
    assert max(seen) > 1


def test_what_an_agent_raises_names_its_place_and_the_gateways_refusal(agent_file, batches):
    reference = agent_file(
        "import openai\n"
        "async def agent(data, *, base_url, api_key):\n"
        "    if 'ask' not in data: raise LookupError('no such tool')\n"
        "    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:\n"
        "        said = [{'role': 'user', 'content': 'How many?'}]\n"
        "        await client.chat.completions.create(model='m', messages=said, **data['ask'])\n"
        "        return 1.0\n"
    )
    own, refused, fine = batches.run(reference, [{}, {"ask": {"frequency_penalty": 1.0}}, {"ask": {}}])
    assert fine.outcome == "rewarded"
    assert own.failure.side == "agent"
    assert "LookupError: no such tool at" in own.failure.reason
    assert "my_agent.py:3, in agent" in own.failure.reason
    assert refused.failure.side == "gateway"
    assert "frequency_penalty" in refused.failure.reason


def test_a_mistake_of_the_policy_is_an_outcome_here_too(agent_file, episode):
    reference = agent_file(
        "from agentrl import PolicyError\n"
        "async def agent(data):\n"
        "    raise PolicyError('it never came to an end', answer={'so': 'far'})\n"
    )
    with pytest.raises(PolicyError, match="never came to an end") as caught:
        episode(reference)
    assert caught.value.answer == {"so": "far"}


def test_a_deadline_ends_the_agents_code_and_keeps_its_worker(agent_file, episode):
    reference = agent_file(
        "import asyncio, os\nended = []\n"
        "async def agent(data):\n"
        "    if data.get('wait'):\n"
        "        try:\n"
        "            await asyncio.sleep(60)\n"
        "        finally:\n"
        "            ended.append(data['wait'])\n"
        "    return [os.getpid(), *ended]\n"
    )

    async def late(one, runner):
        before = await one()
        with pytest.raises(EpisodeTimeout, match=r"within 0\.2 s; it was in call 2.*rollout\.episode_timeout"):
            await one({"wait": "x"}, deadline_s=0.2)
        return [*before, "x"] == await one()

    assert episode(reference, scenario=late)


def test_an_agent_that_blocks_its_loop_is_named_where_another_one_is_late(agent_file, episode, batches):
    reference = agent_file(
        "import asyncio, time\n"
        "async def agent(data):\n"
        "    await asyncio.sleep(0.1)\n"
        "    if data: time.sleep(60)\n"
        "    await asyncio.sleep(60)\n"
    )

    async def both(one, runner):
        waits = [one(deadline_s=4.0), one(deadline_s=4.3), one({"block": True}, deadline_s=6.0)]
        return await asyncio.gather(*waits, return_exceptions=True)

    *held_up, blocker = episode(reference, scenario=both, max_workers=1)
    assert [type(error) for error in held_up] == [WorkerError] * 2
    assert isinstance(blocker, EpisodeTimeout)
    assert "blocked its event loop" in str(blocker)
    assert any("my_agent.py:4" in warning and "blocked the event loop" in warning for warning in batches.warnings)


@pytest.mark.parametrize("stubborn", [False, True])
def test_interrupting_an_episode_ends_the_agents_code_first(agent_file, episode, stubborn):
    reference = agent_file(
        "import asyncio, os\n"
        "async def agent(data):\n"
        "    while data:\n"
        "        try:\n"
        "            await asyncio.sleep(60)\n"
        "        except asyncio.CancelledError:\n"
        "            if data['stubborn']: continue\n"
        "            raise\n"
        "    return os.getpid()\n"
    )

    async def interrupt(one, runner):
        pid = await one()
        task = asyncio.create_task(one({"stubborn": stubborn}))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert psutil.pid_exists(pid) is not stubborn
        return await one()

    assert episode(reference, scenario=interrupt)


def wait_until_stopped(pid):
    """Every thread of it: one that is about to stop may still read."""
    while any("State:\tT" not in each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/status")):
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_episode_that_its_worker_died_without_having_read_of_is_not_to_blame(agent_file, episode):
    reference = agent_file("import os\nasync def agent(data): return os.getpid()\n")

    async def too_late(one, runner):
        pid = await one()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.to_thread(wait_until_stopped, pid)
        unread = asyncio.create_task(one())
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"was ended by SIGKILL.*before it had read of this episode"):
            await unread
        return await one()

    assert episode(reference, scenario=too_late, max_workers=1)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({1: "a"}, "the key 1 of data['x'], a int"),
        ([b"bytes"], "data['x'][0], a bytes"),
        (object, "data['x'], a type"),
    ],
)
def test_a_task_that_json_cannot_carry_is_refused_with_its_place(agent_file, episode, value, found):
    with pytest.raises(ConfigError) as caught:
        episode(agent_file(TRIVIAL), {"x": value})
    assert found in str(caught.value)
    assert "rollout.mode=inline" in str(caught.value)


def test_a_task_nested_in_itself_or_too_deep_is_refused(agent_file, episode):
    knot: list[object] = []
    knot.append(knot)
    with pytest.raises(ConfigError, match="contains itself"):
        episode(agent_file(TRIVIAL), {"x": knot})
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested too deep"):
        episode(agent_file(TRIVIAL), {"x": deep})


def test_secrets_of_this_process_stay_here_unless_they_are_listed(agent_file, episode, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "s3cret")
    monkeypatch.setenv("MY_TOKEN", "t0ken")
    source = "import os\ndef agent(data): return [os.environ.get(name) for name in ('MY_SECRET', 'MY_TOKEN', 'X')]\n"
    reference = agent_file(source)
    assert episode(process_of(reference, env=["MY_TOKEN", "X=y"])) == [None, "t0ken", "y"]


def test_what_agents_print_is_in_the_runs_logs_and_keys_are_not(agent_file, episode, logs):
    reference = agent_file(
        "import os, sys\n"
        "print('imported')\n"
        "def agent(data, *, api_key):\n"
        "    print('out', flush=True); print('err', file=sys.stderr); os.write(1, f'raw {api_key}\\nrest'.encode())\n"
        "    return 1.0\n"
    )
    episode(reference)
    lines = (logs / "workers" / "worker-1.log").read_text().splitlines()
    assert lines[0].startswith("--- 20")
    assert " process " in lines[0]
    assert lines[1:4] == ["imported", "out", "err"]
    assert lines[4].startswith("raw sk-agentrl-")
    assert lines[4].endswith("-…")
    assert lines[5] == "rest"


def test_a_worker_that_dies_says_what_it_printed_last(agent_file, episode):
    reference = agent_file(
        "import os\ndef agent(data):\n    print('a\\nCUDA error: out of\\tmemory', flush=True)\n    os._exit(7)\n"
    )
    with pytest.raises(AgentError, match=r"exit code 7 and no answer; it printed last: a \| CUDA error: out of memory"):
        episode(reference)


def test_an_agent_that_writes_into_the_connection_costs_its_worker_only(agent_file, episode):
    reference = agent_file(
        "import os, stat\n"
        "def agent(data):\n"
        "    for fd in range(3, 64):\n"
        "        try:\n"
        "            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, data['says'].encode())\n"
        "        except OSError: pass\n"
        "    return 1.0\n"
    )

    async def twice(one, runner):
        with pytest.raises(AgentError, match="no message of the worker protocol"):
            await one({"says": "hello\n"})
        with pytest.raises(AgentError, match="no message of the worker protocol"):
            await one({"says": '{"type": "failed", "id": 2, "error": 3}\n'})
        return await one({"says": ""})

    assert episode(reference, scenario=twice) == 1.0


def test_two_runs_one_after_the_other_and_a_loop_outside_the_main_thread(agent_file, episode):
    import threading

    reference = agent_file("import os\nasync def agent(data): return os.getppid()\n")
    returned = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: returned.append(episode(reference)))
        thread.start()
        thread.join()
    assert len(set(returned)) == 2
    assert os.getpid() not in returned


def test_leaving_ends_workers_that_do_not_stop(agent_file, batches):
    reference = agent_file(
        "import os, signal, threading\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "async def agent(data): return os.getpid()\n"
    )

    async def main():
        async with batches.runner(reference, limits=QUICK) as runner:
            return await runner.run({}, connection(batches.gateway), deadline_s=10, activity=str)

    assert not psutil.pid_exists(asyncio.run(in_time(main())))
